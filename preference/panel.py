"""Several opinions of one match -> one: ratings as a comparison, panels, and what a judge hands on to the next."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from preference.types import JudgeFailure, JudgeInfo, Match, Outcome, Rating, Verdict, content_id

Opinion = Verdict | JudgeFailure


def decide(probability: float, tie_band: float) -> Outcome:
    """The outcome of P(first is better); within ``tie_band`` of 1/2 it is a tie, and 1/2 always is one."""
    if abs(probability - 0.5) <= tie_band:
        return Outcome.TIE
    return Outcome.FIRST if probability > 0.5 else Outcome.SECOND


def by_ratings(match: Match, first: Rating | JudgeFailure, second: Rating | JudgeFailure, scale: float) -> Opinion:
    """The comparison that two ratings imply: P(first is better) = sigmoid(difference / scale), Bradley-Terry."""
    seconds, cost = first.seconds + second.seconds, first.cost + second.cost
    for rating in (first, second):
        if isinstance(rating, JudgeFailure):
            return JudgeFailure(match.ids, rating.outcome, rating.error, rating.judge, seconds, cost)
    assert isinstance(first, Rating)
    assert isinstance(second, Rating)
    difference = (first.value - second.value) / scale
    probability = 1 / (1 + math.exp(-difference)) if difference > -700 else 0.0
    return Verdict(*match.ids, decide(probability, 0.0), probability, first.judge, seconds=seconds, cost=cost)


@dataclass(frozen=True, slots=True)
class PanelRules:
    weights: tuple[float, ...]
    tie_band: float
    min_votes: int


def panel(match: Match, opinions: Sequence[Opinion], rules: PanelRules, info: JudgeInfo) -> Opinion:
    """The weighted mean of P(first is better) over the members that gave a verdict; below ``min_votes`` it abstains."""
    votes = [(o, w) for o, w in zip(opinions, rules.weights, strict=True) if isinstance(o, Verdict)]
    seconds, cost = max((o.seconds for o in opinions), default=0.0), math.fsum(o.cost for o in opinions)
    if len(votes) < rules.min_votes or not votes:
        errors = "; ".join(f"{o.judge.name}: {o.error}" for o in opinions if isinstance(o, JudgeFailure))
        error = f"{len(votes)} of {len(opinions)} members gave a verdict, {rules.min_votes} are needed; {errors}"
        failed = bool(opinions) and all(isinstance(o, JudgeFailure) and o.outcome is Outcome.FAILED for o in opinions)
        return JudgeFailure(match.ids, Outcome.FAILED if failed else Outcome.ABSTAIN, error, info, seconds, cost)
    total = math.fsum(w for _, w in votes)
    probability = math.fsum(w * v.probability for v, w in votes) / total
    return Verdict(
        *match.ids,
        decide(probability, rules.tie_band),
        probability,
        info,
        order_flipped=any(v.order_flipped for v, _ in votes),
        rationale="\n\n".join(f"{v.judge.name}: {v.rationale}" for v, _ in votes if v.rationale),
        seconds=seconds,
        cost=cost,
    )


@dataclass(frozen=True, slots=True)
class EscalationRules:
    below: float
    on_flip: bool
    on_failure: bool
    audit: float
    seed: int


def escalates(opinion: Opinion, rules: EscalationRules) -> bool:
    """Whether the first judge is too unsure of its opinion for it to stand."""
    if isinstance(opinion, JudgeFailure):
        return rules.on_failure
    return abs(opinion.probability - 0.5) < rules.below or (rules.on_flip and opinion.order_flipped)


def audited(match: Match, rules: EscalationRules) -> bool:
    """Whether the match is in the random share that goes on anyway; the same match always is or never is."""
    return random.Random(content_id("audit", rules.seed, *match.ids)).random() < rules.audit
