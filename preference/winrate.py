"""Win rates of new answers over baseline answers to the same prompts: interval and length control, in numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

INTERCEPT_RIDGE = 0.01  # keeps all-wins finite: n wins of n give 0.96 at n = 1 and 0.999 at n = 100
SLOPE_RIDGE = 0.1  # a prior of sd 3.2 log-odds for the length effect; negligible beside some 30 outcomes


@dataclass(frozen=True, slots=True)
class WinRate:
    """Ties count half; ``low`` and ``high`` are the Wilson 95% interval."""

    wins: int
    ties: int
    losses: int
    rate: float
    low: float
    high: float

    def __str__(self) -> str:
        counts = f"{self.wins} W / {self.ties} T / {self.losses} L of {self.wins + self.ties + self.losses}"
        return f"{self.rate:.3f} [{self.low:.3f}, {self.high:.3f}] ({counts})"


def wilson(wins: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval (low, high) of a proportion; ``z`` normal quantiles wide (1.96: 95%).

    ``wins`` may be fractional, ties counting half: a tie varies less than a win or a loss, so the interval is then
    wider than needed, never too narrow. Raises ValueError unless 0 <= wins <= n and n >= 1.
    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22, 1927.
    """
    if n < 1 or not 0 <= wins <= n or not (math.isfinite(z) and z >= 0):
        raise ValueError(f"no interval for {wins} wins of {n} at z = {z}")
    p = wins / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # p is inside the interval in exact arithmetic; rounding may leave it just outside at p = 0 and p = 1.
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def outcomes(after: Sequence[float], before: Sequence[float], tie_margin: float = 0.0) -> NDArray[np.float64]:
    """Per prompt 1.0 where ``after`` scores higher, 0.0 where ``before`` does, 0.5 for differences <= ``tie_margin``.

    Scores are in the judge's units. Raises ValueError on empty, unequal or non-finite input.
    """
    new, old = np.asarray(after, np.float64), np.asarray(before, np.float64)
    if new.ndim != 1 or new.shape != old.shape or new.size == 0:
        raise ValueError(f"need two equally long, non-empty lists of scores, got shapes {new.shape} and {old.shape}")
    if not (np.isfinite(new).all() and np.isfinite(old).all()):
        raise ValueError("a score is not finite")
    if not tie_margin >= 0:
        raise ValueError(f"tie_margin must be >= 0, not {tie_margin}")
    difference = new - old
    won: NDArray[np.float64] = np.where(np.abs(difference) <= tie_margin, 0.5, (difference > 0).astype(np.float64))
    return won


def win_rate(after: Sequence[float], before: Sequence[float], tie_margin: float = 0.0) -> WinRate:
    """Win rate of ``after`` over ``before`` (judge scores of answers to the same prompts, in order), ties half."""
    won = outcomes(after, before, tie_margin)
    total = float(won.sum())
    low, high = wilson(total, won.size)
    return WinRate(
        wins=int((won == 1).sum()),
        ties=int((won == 0.5).sum()),
        losses=int((won == 0).sum()),
        rate=total / won.size,
        low=low,
        high=high,
    )


def length_controlled_win_rate(outcomes: Sequence[float], length_difference: Sequence[float]) -> float:
    """Win rate at equal length, in (0, 1): the share expected to win if answers were as long as the baseline's.

    A logistic regression of the outcome (0, 0.5 or 1) on an intercept and tanh(d / std(d)), d being the length
    difference (new minus baseline, in tokens or any one unit), predicted at d = 0. This is the model of
    length-controlled AlpacaEval (arXiv 2404.04475) for one pair of models, without its per-prompt difficulty
    terms, which need many models' answers to fit. A small ridge keeps it finite when all won or length separates wins
    from losses perfectly.

    Limits. With (nearly) constant d the effect of length cannot be told from quality: the result is the raw rate. Where
    d never crosses zero it is an extrapolation. Causes of winning that go along with length count as length.
    Below some 30 outcomes the ridge draws it noticeably towards 0.5; no interval comes with it.
    Raises ValueError on empty, unequal, non-finite or out-of-range input.
    """
    won, difference = np.asarray(outcomes, np.float64), np.asarray(length_difference, np.float64)
    if won.ndim != 1 or won.shape != difference.shape or won.size == 0:
        raise ValueError(f"need two equally long, non-empty lists, got shapes {won.shape} and {difference.shape}")
    if not np.isin(won, (0.0, 0.5, 1.0)).all():
        raise ValueError("an outcome is none of 0, 0.5 and 1")
    if not np.isfinite(difference).all():
        raise ValueError("a length difference is not finite")
    intercept, _ = _fit(won, _length_feature(difference))
    return float(sigmoid(np.float64(intercept)))


def _length_feature(difference: NDArray[np.float64]) -> NDArray[np.float64]:
    """tanh of the difference in standard deviations, zero at equal length (hence scaled but not centred)."""
    std = float(difference.std())
    # Rounding gives constant lists of huge values a tiny spread.
    if std <= 1e-9 * float(np.abs(difference).max()):
        return np.zeros_like(difference)
    feature: NDArray[np.float64] = np.tanh(difference / std)
    return feature


def sigmoid(z: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    """1 / (1 + exp(-z)), any shape."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * z)))  # this form overflows nowhere


def _fit(won: NDArray[np.float64], feature: NDArray[np.float64]) -> tuple[float, float]:
    """(intercept, slope) of the ridge-regularised logistic regression, by Newton's method with step halving."""
    design = np.stack([np.ones_like(feature), feature], axis=1)  # [n, 2]
    ridge = np.array([INTERCEPT_RIDGE, SLOPE_RIDGE])

    def loss(weights: NDArray[np.float64]) -> float:
        z = design @ weights
        return float((np.logaddexp(0.0, z) - won * z).sum() + 0.5 * (ridge * weights**2).sum())

    weights = np.zeros(2)
    for _ in range(100):
        p = sigmoid(design @ weights)
        gradient = design.T @ (p - won) + ridge * weights
        if np.abs(gradient).max() < 1e-9 * won.size:
            break
        hessian = (design * (p * (1 - p))[:, None]).T @ design + np.diag(ridge)
        step = np.linalg.solve(hessian, gradient)
        # The loss is strictly convex, so a short enough Newton step lowers it; a full one may overshoot far out.
        # The slack keeps rounding in the loss from refusing the last, tiny steps.
        size, bound = 1.0, loss(weights) * (1 + 1e-12)
        while size > 1e-6 and loss(weights - size * step) > bound:
            size /= 2
        weights = weights - size * step
    return float(weights[0]), float(weights[1])
