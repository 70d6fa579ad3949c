"""Candidates and judgements -> at most one pair a prompt, and exactly one fate for every prompt."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from preference.types import (
    Fate,
    JudgedGroup,
    JudgeFailure,
    Outcome,
    Pair,
    Rating,
    Response,
    content_id,
)

MissingEos = Literal["allow", "penalise", "never_chosen", "drop"]
Strategy = Literal["best_vs_worst", "best_vs_random", "random"]


@dataclass(frozen=True, slots=True)
class PairingRules:
    strategy: Strategy = "best_vs_worst"
    min_margin: float = 0.0
    missing_eos: MissingEos = "allow"
    missing_eos_penalty: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Paired:
    """A prompt's pair."""

    pair: Pair


@dataclass(frozen=True, slots=True)
class Unpaired:
    """Why a prompt has no pair."""

    fate: Fate


def ratings(judged: JudgedGroup) -> dict[str, float]:
    """Score of every candidate that the judge rated, by candidate id."""
    return {j.candidate_id: j.value for j in judged.judgements if isinstance(j, Rating)}


def make_pair(judged: JudgedGroup, rules: PairingRules) -> Paired | Unpaired:
    """Choose the pair of one prompt. Ties, failures and cut-off responses become fates, never pairs.

    Equal scores (within ``min_margin``) are a tie: the first sample does not win by being first.
    """
    candidates = judged.group.candidates
    if rules.missing_eos == "drop":
        candidates = tuple(c for c in candidates if c.finished)
        if len(candidates) < 2:
            return Unpaired(Fate.UNFINISHED)
    scores = _scores(judged, rules)
    candidates = tuple(c for c in candidates if c.id in scores)
    if len(candidates) < 2:
        return Unpaired(_why_unjudged(judged))
    if len({c.token_ids for c in candidates}) == 1:
        return Unpaired(Fate.IDENTICAL)
    may_win = candidates
    if rules.missing_eos == "never_chosen":
        may_win = tuple(c for c in candidates if c.finished)
        if not may_win:
            return Unpaired(Fate.UNFINISHED)
    chosen, rejected = _select(may_win, candidates, scores, rules)
    margin = scores[chosen.id] - scores[rejected.id]
    if margin <= rules.min_margin:
        return Unpaired(Fate.TIED)
    prompt = judged.group.prompt
    return Paired(Pair(content_id("pair", chosen.id, rejected.id), prompt, chosen, rejected, margin))


def _scores(judged: JudgedGroup, rules: PairingRules) -> dict[str, float]:
    scores = ratings(judged)
    if rules.missing_eos == "penalise":
        for c in judged.group.candidates:
            if c.id in scores and not c.finished:
                scores[c.id] -= rules.missing_eos_penalty
    return scores


def _why_unjudged(judged: JudgedGroup) -> Fate:
    failures = [j for j in judged.judgements if isinstance(j, JudgeFailure)]
    abstained = bool(failures) and all(j.outcome is Outcome.ABSTAIN for j in failures)
    return Fate.ABSTAINED if abstained else Fate.JUDGE_FAILED


def _select(
    may_win: tuple[Response, ...],
    candidates: tuple[Response, ...],
    scores: Mapping[str, float],
    rules: PairingRules,
) -> tuple[Response, Response]:
    """(chosen, rejected); equal scores are ordered by index, which only matters where the margin makes no tie."""
    rng = random.Random(content_id("pairing", rules.seed, *(c.id for c in candidates)))
    best = max(may_win, key=lambda c: scores[c.id])
    others = [c for c in candidates if c is not best]
    if rules.strategy == "best_vs_worst":
        return best, min(others, key=lambda c: scores[c.id])
    if rules.strategy == "best_vs_random":
        return best, rng.choice(others)
    first = rng.choice(may_win)
    second = rng.choice([c for c in candidates if c is not first])
    if scores[second.id] > scores[first.id] and second in may_win:
        return second, first
    return first, second
