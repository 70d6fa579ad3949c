"""How a prompt's pairs are chosen from its scored candidates: the rules, and a function a strategy."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from preference.types import DATA, HUMAN, POLICY, Response, content_id

MissingEos = Literal["allow", "penalise", "never_chosen", "drop"]
Strategy = Literal[
    "best_vs_worst",
    "best_vs_random",
    "best_vs_mu_2sigma",
    "random",
    "all_pairs",
    "rejection_sampling",
    "labels",
    "versus",
    "spin",
]
SEVERAL_PAIRS: frozenset[Strategy] = frozenset({"all_pairs", "rejection_sampling", "versus"})


@dataclass(frozen=True, slots=True)
class PairingRules:
    """``pairing:`` and what of ``sampling:`` belongs to it; the knobs are documented in ``configs.schema``."""

    strategy: Strategy = "best_vs_worst"
    min_margin: float = 0.0
    missing_eos: MissingEos = "allow"
    missing_eos_penalty: float = 1.0
    seed: int = 0
    tournament: Literal["knockout", "round_robin"] = "knockout"
    ties: Literal["drop", "keep"] = "drop"
    length_penalty: float = 0.0
    max_pairs: int | None = None
    rejection_beta: float = 0.5
    threshold: float | Literal["mean"] = "mean"
    neutral_band: float = 0.0


Two = tuple[Response, Response]  # (chosen, rejected)
Scores = Mapping[str, float]  # by candidate id


def sides(candidates: Sequence[Response], strategy: Strategy) -> tuple[list[Response], list[Response]] | None:
    """The two sides that every pair joins, a response of each. None where any two may make a pair.

    ``versus``: the policy's, and everybody else's. ``spin``: the data's, and what plays against it: responses of
    earlier iterates or other models where there are any, else the policy's.
    """
    if strategy == "versus":
        return [c for c in candidates if c.player == POLICY], [c for c in candidates if c.player != POLICY]
    if strategy == "spin":
        data = [c for c in candidates if c.player == DATA]
        rivals = [c for c in candidates if c.player not in (POLICY, DATA, HUMAN)]
        return data, rivals or [c for c in candidates if c.player == POLICY]
    return None


def select(
    may_win: Sequence[Response], candidates: Sequence[Response], scores: Scores, rules: PairingRules
) -> list[Two]:
    """(chosen, rejected) of every pair, the clearest first. Margins are the caller's: some may be 0 or negative.

    ``may_win``: those of ``candidates`` (two or more) that may be chosen, at least one. Equal scores are ordered by
    index, which only matters where the margin makes no tie.
    """
    ids = [c.id for c in candidates]
    rng = random.Random(content_id("pairing", rules.seed, *ids))  # a resumed run draws what it drew before
    best = max(may_win, key=lambda c: scores[c.id])
    others = [c for c in candidates if c is not best]
    match rules.strategy:
        case "best_vs_worst":
            return [(best, min(others, key=lambda c: scores[c.id]))]
        case "best_vs_random":
            return [(best, rng.choice(others))]
        case "best_vs_mu_2sigma":
            return [(best, _near_mu_2sigma(others, [scores[i] for i in ids], scores))]
        case "random":
            first = rng.choice(may_win)
            return [_ordered(first, rng.choice([c for c in candidates if c is not first]), may_win, scores)]
        case "all_pairs":
            pairs = [
                _ordered(a, b, may_win, scores) for a, b in combinations(candidates, 2) if {a.id, b.id} & _ids(may_win)
            ]
            return sorted(pairs, key=lambda p: scores[p[1].id] - scores[p[0].id])
        case "rejection_sampling":
            wanted = 2 * (rules.max_pairs or 1)
            accepted = rejection_sample(candidates, scores, rules.rejection_beta, wanted, rng)
            drawn = zip(accepted[0::2], accepted[1::2], strict=False)
            return [_ordered(a, b, may_win, scores) for a, b in drawn if {a.id, b.id} & _ids(may_win)]
        case "versus":
            own, others = sides(candidates, "versus") or ([], [])
            pairs = [_ordered(a, b, may_win, scores) for a in own for b in others if {a.id, b.id} & _ids(may_win)]
            # Where the better one may not win the difference is negative: such pairs come last.
            return sorted(pairs, key=lambda p: scores[p[1].id] - scores[p[0].id])[: rules.max_pairs or 1]
        case "labels" | "spin":
            raise ValueError(f"pairing.strategy = {rules.strategy} chooses no pairs by scores")


def spin_pair(data: Sequence[Response], rivals: Sequence[Response], seed: int) -> Two:
    """(the data's response, a rival drawn by the seed): SPIN (Chen et al., arXiv 2401.01335) asks no judge."""
    return data[0], random.Random(content_id("spin", seed, *(r.id for r in rivals))).choice(rivals)


def rejection_sample(
    candidates: Sequence[Response], scores: Scores, beta: float, wanted: int, rng: random.Random
) -> list[Response]:
    """Statistical rejection sampling, RSO (Liu et al., arXiv 2309.06657, algorithm 1): up to ``wanted`` candidates.

    One with score s is accepted with probability exp((s - best left) / beta): of samples of the policy, those that the
    optimal policy under a KL penalty of ``beta`` would have given. Drawn without replacement, pass after pass.
    """
    left, accepted = list(candidates), list[Response]()
    wanted = min(wanted, len(left))
    while len(accepted) < wanted:
        best = max(scores[c.id] for c in left)
        rng.shuffle(left)  # or else the first of equals would be accepted first
        taken = [c for c in left if rng.random() < math.exp((scores[c.id] - best) / beta)]
        taken = taken[: wanted - len(accepted)]
        accepted += taken
        left = [c for c in left if c not in taken]
    return accepted


def _near_mu_2sigma(others: Sequence[Response], all_scores: Sequence[float], scores: Scores) -> Response:
    """The candidate nearest to mean - 2 standard deviations of the prompt's scores (Xiao et al., arXiv 2502.16825).

    With few candidates that is the worst one; with many the very worst teach less than it does.
    """
    mean = math.fsum(all_scores) / len(all_scores)
    deviation = math.sqrt(math.fsum((s - mean) ** 2 for s in all_scores) / len(all_scores))
    target = mean - 2 * deviation
    return min(others, key=lambda c: (abs(scores[c.id] - target), scores[c.id]))


def _ordered(first: Response, second: Response, may_win: Sequence[Response], scores: Scores) -> Two:
    """(better, worse); with equal scores as given, and whoever may not win comes second."""
    if first.id not in _ids(may_win) or (scores[second.id] > scores[first.id] and second.id in _ids(may_win)):
        return second, first
    return first, second


def _ids(responses: Sequence[Response]) -> set[str]:
    return {r.id for r in responses}
