"""What a language model answered -> a verdict or a grade: pure arithmetic over distributions of verdict tokens.

A judge is asked a question that has a few allowed answers. What comes in is the probability it gave each of them
*before* its output was constrained to them, so they need not add up to 1: what is missing went to other words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from preference.types import Outcome


class NoVerdict(ValueError):
    """The model did not answer the question; the message says how far it was from doing so."""


@dataclass(frozen=True, slots=True)
class VerdictRules:
    """When a distribution over answers is a verdict."""

    tie_band: float
    """P(first is better) within this of 1/2 is a tie."""
    min_mass: float
    """Least probability of all allowed answers together."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A comparison after both orders of presentation; fields as in ``preference.types.Verdict``."""

    outcome: Outcome
    probability: float
    order_flipped: bool


def compare(forward: Sequence[float], backward: Sequence[float], rules: VerdictRules) -> Decision:
    """Decide between two responses from the answers to both orders of presentation.

    ``forward`` and ``backward`` [2 or 3] are the probabilities of "what is shown first is better", "what is shown
    second is better" and, where it may be answered, "they are equally good". ``backward`` shows the second response
    first. P(first is better) of an order is its renormalised share, with half of the tie's; the mean of both decides.
    That removes a preference for a position: if an order's log-odds are d + b, the mean is above 1/2 exactly where
    d > 0, whatever b is (Wang et al., "Large Language Models are not Fair Evaluators", arXiv 2305.17926).
    Raises NoVerdict where either order was not answered.
    """
    shown_first = [_share_of_first(_renormalised(order, rules.min_mass)) for order in (forward, backward)]
    margin = (shown_first[0] - shown_first[1]) / 2  # exactly the negative with the responses exchanged
    alone = _outcome(shown_first[0] - 0.5, rules.tie_band), _outcome(0.5 - shown_first[1], rules.tie_band)
    flipped = set(alone) == {Outcome.FIRST, Outcome.SECOND}
    return Decision(_outcome(margin, rules.tie_band), 0.5 + margin, flipped)


def mean_grade(answers: Sequence[float], grades: Sequence[int], rules: VerdictRules) -> float:
    """The mean of ``grades`` [n] over the model's distribution ``answers`` [n] (G-Eval, arXiv 2303.16634, eq. 1).

    Raises NoVerdict where the question was not answered.
    """
    if len(answers) != len(grades):
        raise ValueError(f"{len(answers)} probabilities for {len(grades)} grades")
    shares = _renormalised(answers, rules.min_mass)
    return math.fsum(share * grade for share, grade in zip(shares, grades, strict=True))


def _renormalised(answers: Sequence[float], min_mass: float) -> list[float]:
    if not all(math.isfinite(p) and p >= 0 for p in answers):
        raise NoVerdict(f"the model's probabilities are not probabilities: {list(answers)}")
    mass = math.fsum(answers)
    if mass < min_mass or mass == 0:
        raise NoVerdict(
            f"the allowed answers have a probability of {mass:.2g} together (min_mass = {min_mass:g}): the model said "
            f"something else; ask more plainly in the template, take a larger model, or lower min_mass"
        )
    return [p / mass for p in answers]


def _share_of_first(shares: Sequence[float]) -> float:
    first, _, *tie = shares
    return first + math.fsum(tie) / 2


def _outcome(margin: float, tie_band: float) -> Outcome:
    if abs(margin) <= tie_band:
        return Outcome.TIE
    return Outcome.FIRST if margin > 0 else Outcome.SECOND
