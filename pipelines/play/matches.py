"""Matches between players: rounds of them, until the order of the players is as clear as their answers make it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from actors.judges.protocol import Arbiter, Ruling
from pipelines.progress import Progress
from preference.bradley_terry import Game
from preference.schedule import Two, next_meetings
from preference.tournament import share
from preference.types import Candidate, Match, Prompt, Verdict

ROUND = 8
"""Prompts that two players meet on before their order is looked at again."""

Answers = Mapping[str, Candidate]
"""A player's answers by prompt id."""


@dataclass(frozen=True, slots=True)
class Played:
    """A match of two players on one prompt."""

    players: Two
    game: Game | None
    """None: the judge failed."""
    identical: bool
    cost: float = 0.0


async def play(
    judge: Arbiter, prompts: Sequence[Prompt], answers: Mapping[str, Answers], progress: Progress, *, certain: bool
) -> list[Played]:
    """Rounds of matches until the ranking is as clear as the prompts can make it; pure but for what ``judge`` does.

    ``certain``: the judge's P(better) is the score of a game; else who wins, wins (ratings have no probability).
    """
    names, played = list(answers), list[Played]()
    most = len(prompts) * len(names) * (len(names) - 1) // 2
    while meetings := next_meetings(names, games_of(played), Counter(p.players for p in played), len(prompts)):
        met = Counter(p.players for p in played)
        fixtures = [(pair, q) for pair in meetings for q in prompts[met[pair] : met[pair] + ROUND]]
        alike = [_alike(answers, pair, q) for pair, q in fixtures]
        asked = [_match(answers, pair, q) for (pair, q), same in zip(fixtures, alike, strict=True) if not same]
        rulings = iter(await judge.rule(0, asked))
        for (pair, _), same in zip(fixtures, alike, strict=True):
            played.append(_drawn(pair) if same else _played(pair, next(rulings), certain=certain))
        progress.stage(0, "matches", len(played), most, 0)
    return played


def _alike(answers: Mapping[str, Answers], pair: Two, prompt: Prompt) -> bool:
    first, second = (answers[name][prompt.id] for name in pair)
    return first.text == second.text


def _match(answers: Mapping[str, Answers], pair: Two, prompt: Prompt) -> Match:
    return Match(prompt, *(answers[name][prompt.id] for name in pair))


def _drawn(pair: Two) -> Played:
    return Played(pair, Game(*pair, 0.5), True)


def _played(pair: Two, ruling: Ruling, *, certain: bool) -> Played:
    said = ruling.stands
    assert said is not None  # no people judge in an arena
    cost = said.cost + math.fsum(o.cost for o in ruling.overruled)
    score = share(said) if isinstance(said, Verdict) else None
    if score is not None and not certain:
        score = 0.5 if score == 0.5 else float(score > 0.5)
    return Played(pair, None if score is None else Game(*pair, score), False, cost)


def games_of(played: Iterable[Played]) -> list[Game]:
    return [p.game for p in played if p.game is not None]
