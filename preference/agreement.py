"""How far judges agree with each other and with known answers, and which biases they show; in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from preference.winrate import wilson

MISSING = -1


@dataclass(frozen=True, slots=True)
class Share:
    """``hits`` of ``n``; ``low`` and ``high`` are the Wilson 95% interval. None of them where ``n`` is 0."""

    hits: float
    n: int
    rate: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, hits: float, n: int) -> Share:
        if n == 0:
            return cls(0.0, 0, None, None, None)
        return cls(hits, n, hits / n, *wilson(hits, n))


def krippendorff_alpha(codes: ArrayLike) -> float:
    """Krippendorff's alpha of nominal data: 1 is perfect agreement, 0 what chance would give, below 0 is worse.

    ``codes`` [units, raters]: categories as integers >= 0, ``MISSING`` where a rater did not judge a unit. Units with
    fewer than two codes say nothing about agreement and are left out. nan where no unit has two, or where there is only
    one category (agreement by chance is then certain). Raises ValueError on another shape or smaller codes.
    Source: Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011.
    """
    table = _codes(codes, 2)
    categories = int(table.max(initial=MISSING)) + 1
    counts = np.stack([(table == c).sum(axis=1) for c in range(categories)], axis=1) if categories else np.zeros((0, 0))
    raters = counts.sum(axis=1)  # m_u, judgements of a unit
    counts, raters = counts[raters > 1].astype(np.float64), raters[raters > 1].astype(np.float64)
    n = raters.sum()
    if not n:
        return float("nan")
    # Pairs of unequal codes within units (each weighted 1 / (m_u - 1)), over those among all codes.
    observed = ((raters**2 - (counts**2).sum(axis=1)) / (raters - 1)).sum() / n
    totals = counts.sum(axis=0)
    expected = (n**2 - (totals**2).sum()) / (n * (n - 1))
    return float(1 - observed / expected) if expected else float("nan")


def cohens_kappa(first: ArrayLike, second: ArrayLike) -> float:
    """Cohen's kappa of two judges: agreement beyond what their own frequencies would give by chance.

    ``first`` and ``second`` [n]: categories as integers >= 0 of the same items; items that either did not judge
    (``MISSING``) are left out. nan where none is left, or where both always gave the same one category. Raises
    ValueError on unequal shapes or smaller codes. Source: Cohen, "A Coefficient of Agreement for Nominal Scales", 1960.
    """
    one, other = _codes(first, 1), _codes(second, 1)
    if one.shape != other.shape:
        raise ValueError(f"two judges of the same items, but {one.size} and {other.size} codes")
    both = (one != MISSING) & (other != MISSING)
    one, other = one[both], other[both]
    if not one.size:
        return float("nan")
    categories = int(max(one.max(), other.max())) + 1
    table = np.zeros((categories, categories))
    np.add.at(table, (one, other), 1 / one.size)
    expected = float(table.sum(axis=1) @ table.sum(axis=0))
    return float((np.trace(table) - expected) / (1 - expected)) if expected < 1 else float("nan")


def accuracy_without_ties(outcomes: Sequence[float], truth: Sequence[float]) -> Share:
    """How often a judge names the same side as ``truth``, of the items on which neither says tie.

    Outcomes are 1.0 (first is better), 0.0 (second) or 0.5 (tie), of the same items in the same order. Raises
    ValueError on unequal lengths and on other values.
    """
    ours, known = _outcomes(outcomes), _outcomes(truth)
    if ours.shape != known.shape:
        raise ValueError(f"{ours.size} outcomes cannot be compared with {known.size}")
    decided = (ours != 0.5) & (known != 0.5)
    return Share.of(int((ours == known)[decided].sum()), int(decided.sum()))


def position_bias(shown_first_won: Sequence[float]) -> Share:
    """How often the response that was shown first (or on the left) wins, ties left out; 0.5 is no bias.

    One outcome a judgement: 1.0 the one shown first won, 0.0 it lost, 0.5 a tie.
    """
    won = _outcomes(shown_first_won)
    decided = won[won != 0.5]
    return Share.of(int(decided.sum()), decided.size)


def longest_wins(outcomes: Sequence[float], first_lengths: Sequence[float], second_lengths: Sequence[float]) -> Share:
    """How often the longer response wins, of the pairs with a winner and with unequal lengths (in any one unit).

    What a judge must beat to be worth more than "pick the longer one". Raises ValueError on unequal lists.
    """
    won = _outcomes(outcomes)
    difference = np.asarray(first_lengths, np.float64) - np.asarray(second_lengths, np.float64)
    if difference.shape != won.shape:
        raise ValueError(f"{won.size} outcomes, but {difference.size} pairs of lengths")
    decided = (won != 0.5) & (difference != 0)
    return Share.of(int(((won == 1) == (difference > 0))[decided].sum()), int(decided.sum()))


def _codes(values: ArrayLike, dimensions: int) -> NDArray[np.int64]:
    codes = np.asarray(values)
    if codes.ndim != dimensions or (codes.size and not np.issubdtype(codes.dtype, np.integer)):
        raise ValueError(f"need integer codes with {dimensions} axes, got {codes.dtype} of shape {codes.shape}")
    if codes.size and codes.min() < MISSING:
        raise ValueError(f"codes are at least 0, or {MISSING} for missing; found {codes.min()}")
    return codes.astype(np.int64)


def _outcomes(values: Sequence[float]) -> NDArray[np.float64]:
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or not np.isin(found, (0.0, 0.5, 1.0)).all():
        raise ValueError("an outcome is none of 0, 0.5 and 1")
    return found
