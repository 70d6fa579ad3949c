"""Which matches decide a prompt's pair: tournaments between its candidates, with as few questions as they take.

    goal              decides                              matches among n candidates, at most
    best_and_worst    first and last                       ceil(3n / 2) - 2
    best_and_other    the first, and one drawn at random   n - 1
    two               the better of two drawn at random    1
    all               nothing: everybody meets everybody   n (n - 1) / 2
    across            nothing: each of the policy's k      k (n - k)
                      meets each of its opponents'

(and one more where failures left the two without a chain of verdicts between them).

Finding both ends costs less than two knockouts, because one round serves both: its winners play on for the first place,
its losers for the last (Pohl, "A Sorting Problem and Its Complexity", CACM 15, 1972; with certain answers no other
schedule needs fewer in the worst case).

Nothing here keeps state. The next round follows from the candidates, the judgements so far and the seed, so a journal
replays into the same tournament. A match that failed is not asked again; like a tie, it is settled by the seed for
advancing alone, and is no evidence of anything.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from preference.bradley_terry import Game, components
from preference.types import (
    POLICY,
    CandidateGroup,
    JudgeFailure,
    Judgement,
    Match,
    Outcome,
    Response,
    Verdict,
    content_id,
)

Goal = Literal["best_and_worst", "best_and_other", "two", "all", "across"]
Meeting = tuple[Response, Response]  # a match of the prompt that all of this is about


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a tournament stands. ``best`` and ``other`` are None until it is decided, and where the goal names none."""

    open: tuple[Meeting, ...]
    """What to play next; any number of these may be judged at once. Empty: it is over."""
    best: Response | None
    other: Response | None
    """The worst, or whoever was drawn. May be ``best`` itself where a judge contradicts itself (a > b > c > a)."""
    played: int
    """Matches that were judged so far, in vain or not."""


def next_matches(
    group: CandidateGroup,
    judged: Sequence[Judgement],
    goal: Goal,
    seed: int,
    may_win: Collection[str] | None = None,
) -> tuple[Match, ...]:
    """The next round, to be judged in any order or at once; empty when the tournament is decided.

    ``may_win``: ids of the candidates that may come first (None: all of them); the others play for the last place only.
    """
    standing = standing_of(group.candidates, judged, goal, seed, may_win)
    return tuple(Match(group.prompt, first, second) for first, second in standing.open)


def standing_of(
    candidates: Sequence[Response],
    judged: Sequence[Judgement],
    goal: Goal,
    seed: int,
    may_win: Collection[str] | None = None,
) -> Standing:
    """What ``next_matches`` goes by, and the result once there is one. Candidates of equal ids count as one."""
    entrants = list(distinct(candidates))
    random.Random(content_id("tournament", seed, *(c.id for c in entrants))).shuffle(entrants)
    results = _Results(judged, seed)
    winners = [c for c in entrants if may_win is None or c.id in may_win]
    if len(entrants) < 2 or not winners:
        return Standing((), None, None, results.played)
    if goal in ("all", "across"):
        meetings = (m for m in combinations(entrants, 2) if goal == "all" or _across(*m))
        return Standing(tuple(m for m in meetings if not results.settled(*m)), None, None, results.played)
    if goal == "two":
        return _two(entrants, winners, results)
    if goal == "best_and_other":
        return _best_and_other(entrants, winners, results, seed)
    return _best_and_worst(entrants, winners, results)


def _across(one: Response, two: Response) -> bool:
    return (one.player == POLICY) != (two.player == POLICY)


def distinct(candidates: Iterable[Response], preferred: Container[str] = ()) -> tuple[Response, ...]:
    """One candidate of each text in token ids: the first, or the first with an id in ``preferred``; order is kept."""
    kept: dict[tuple[int, ...], Response] = {}
    for c in candidates:
        known = kept.get(c.token_ids)
        if known is None or (c.id in preferred and known.id not in preferred):
            kept[c.token_ids] = c
    return tuple(kept.values())


def share(verdict: Verdict) -> float | None:
    """P(first is better) as evidence: 1/2 for a tie, None where the judge did not decide."""
    if verdict.outcome in (Outcome.ABSTAIN, Outcome.FAILED):
        return None
    return 0.5 if verdict.outcome is Outcome.TIE else verdict.probability


def games(judged: Iterable[Judgement]) -> list[Game]:
    """Every decided match as a game; a judge's probability is its score."""
    found = ((j, share(j)) for j in judged if isinstance(j, Verdict))
    return [Game(j.first_id, j.second_id, p) for j, p in found if p is not None]


class _Results:
    """Judgements by match, whichever candidate came first in it."""

    def __init__(self, judged: Sequence[Judgement], seed: int) -> None:
        self._seed = seed
        self._shares: dict[tuple[str, str], list[float]] = {}  # P(the first of the sorted ids is better)
        self._games = games(judged)
        for j in judged:
            if isinstance(j, JudgeFailure) and len(j.candidate_ids) == 2:
                self._shares.setdefault(_key(*j.candidate_ids), [])
            elif isinstance(j, Verdict):
                key, p = _key(j.first_id, j.second_id), share(j)
                votes = self._shares.setdefault(key, [])
                if p is not None:
                    votes.append(p if key[0] == j.first_id else 1 - p)

    @property
    def played(self) -> int:
        return len(self._shares)

    def settled(self, one: Response, two: Response) -> bool:
        return _key(one.id, two.id) in self._shares

    def winner(self, one: Response, two: Response) -> Response:
        """Who advances; ties and failures are settled by the seed, not by who stands first."""
        key = _key(one.id, two.id)
        votes = self._shares[key]
        mean = sum(votes) / len(votes) if votes else 0.5
        if mean == 0.5:
            mean = random.Random(content_id("settle", self._seed, *key)).choice((0.0, 1.0))
        return one if (mean > 0.5) == (one.id == key[0]) else two

    def connected(self, one: Response, two: Response) -> bool:
        """Whether verdicts lead from one to the other."""
        return any({one.id, two.id} <= group for group in components(self._games))


def _key(one: str, two: str) -> tuple[str, str]:
    return (one, two) if one < two else (two, one)


def _knockout(entrants: Sequence[Response], results: _Results, best: bool) -> tuple[Response | None, list[Meeting]]:
    """(who is left, matches of the round that is not decided yet): one of the two is empty."""
    left = list(entrants)
    while len(left) > 1:
        pairs = list(zip(left[0::2], left[1::2], strict=False))
        if waiting := [pair for pair in pairs if not results.settled(*pair)]:
            return None, waiting
        advancing = [pair[(results.winner(*pair) is pair[0]) != best] for pair in pairs]
        left = advancing + left[2 * len(pairs) :]  # whoever had no opponent
    return left[0], []


def _best_and_worst(entrants: list[Response], winners: list[Response], results: _Results) -> Standing:
    first_round = list(zip(winners[0::2], winners[1::2], strict=False))
    best, waiting = _knockout(winners, results, best=True)
    if not all(results.settled(*pair) for pair in first_round):
        return Standing(tuple(waiting), None, None, results.played)
    losers = [pair[results.winner(*pair) is pair[0]] for pair in first_round]
    unpaired = winners[2 * len(first_round) :]
    outsiders = [c for c in entrants if c not in winners]
    worst, also = _knockout([*losers, *unpaired, *outsiders], results, best=False)
    if best is None or worst is None:
        return Standing((*waiting, *also), None, None, results.played)
    return _final(best, worst, results)


def _best_and_other(entrants: list[Response], winners: list[Response], results: _Results, seed: int) -> Standing:
    best, waiting = _knockout(winners, results, best=True)
    if best is None:
        return Standing(tuple(waiting), None, None, results.played)
    others = sorted((c for c in entrants if c is not best), key=lambda c: c.id)
    other = random.Random(content_id("other", seed, best.id, *(c.id for c in others))).choice(others)
    return _final(best, other, results)


def _two(entrants: list[Response], winners: list[Response], results: _Results) -> Standing:
    first = winners[0]
    second = next(c for c in entrants if c is not first)
    if not results.settled(first, second):
        return Standing(((first, second),), None, None, results.played)
    if second in winners and results.winner(first, second) is second:
        first, second = second, first
    return Standing((), first, second, results.played)


def _final(best: Response, other: Response, results: _Results) -> Standing:
    """The two as they are, or one more match where failures left no chain of verdicts between them."""
    if best is not other and not results.settled(best, other) and not results.connected(best, other):
        return Standing(((best, other),), None, None, results.played)
    return Standing((), best, other, results.played)
