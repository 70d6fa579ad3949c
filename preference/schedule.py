"""Which players of an arena meet next: only those whose order the games so far leave open.

Everybody against everybody on N prompts costs N P (P - 1) / 2 judgements. Here the players first meet in a circle, on a
few prompts; from then on, neighbours in the ranking meet on the next few until a likelihood-ratio test tells them apart
(Wilks, "The Large-Sample Distribution of the Likelihood Ratio", 1938) or they have met on every prompt. Far from each
other, players are told apart by the chain of those between them.

The test is applied again after every round, so its level is kept strict (``CERTAIN``); the intervals of the final table
are those of the games that were played, not of the schedule. Wald's test would not do: its statistic shrinks where one
player wins everything (Hauck & Donner, JASA 72, 1977), and the clearest cases would be played to the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from preference.bradley_terry import Game, strengths

CERTAIN = 2.58
"""Normal quantiles of the likelihood-ratio test: 1% for one look."""

Two = tuple[str, str]


def two(one: str, other: str) -> Two:
    """The two as a key, whichever is named first."""
    return (one, other) if one < other else (other, one)


def next_meetings(
    players: Sequence[str], games: Sequence[Game], met: Mapping[Two, int], prompts: int, certain: float = CERTAIN
) -> list[Two]:
    """Who plays on further prompts, at once and in any order; empty when the ranking is as clear as it gets.

    ``met``: on how many of the ``prompts`` two (by ``two``) have met, whether that gave a game or the judge failed.
    Raises ValueError unless there are two players of different names.
    """
    if len(set(players)) != len(players) or len(players) < 2:
        raise ValueError(f"an arena needs at least two players with names of their own, found {', '.join(players)}")
    circle = {two(a, b): None for a, b in zip(players, (*players[1:], players[0]), strict=True)}
    if unmet := [pair for pair in circle if not met.get(pair)]:
        return unmet
    if not games:
        return [pair for pair in circle if met[pair] < prompts]
    fitted = strengths(games)
    ranked = sorted(fitted.players, key=lambda name: -fitted.of(name))
    neighbours = [two(a, b) for a, b in pairwise(ranked)]
    unranked = [pair for pair in circle if set(pair) - set(ranked) and met[pair] < prompts]  # the judge failed so far
    return unranked + [
        pair for pair in neighbours if met.get(pair, 0) < prompts and not told_apart(games, *pair, certain)
    ]


def told_apart(games: Sequence[Game], one: str, other: str, certain: float = CERTAIN) -> bool:
    """Whether the games rule out that the two are equally strong: 2 (log L - log L of equals) > ``certain`` squared."""
    free = strengths(games)
    found = dict(zip(free.players, map(float, free.values), strict=True))
    as_one = {other: one}
    elsewhere = [g for g in games if {g.first, g.second} != {one, other}]
    renamed = [Game(as_one.get(g.first, g.first), as_one.get(g.second, g.second), g.score) for g in elsewhere]
    equal = dict.fromkeys(free.players, 0.0)
    if renamed:
        tied = strengths(renamed)
        equal |= dict(zip(tied.players, map(float, tied.values), strict=True))
        equal[other] = equal[one]
    return 2 * (_log_likelihood(games, found) - _log_likelihood(games, equal)) > certain**2


def _log_likelihood(games: Sequence[Game], values: Mapping[str, float]) -> float:
    def log_sigmoid(x: float) -> float:
        return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))

    gaps = [(g.score, values[g.first] - values[g.second]) for g in games]
    return math.fsum(score * log_sigmoid(gap) + (1 - score) * log_sigmoid(-gap) for score, gap in gaps)
