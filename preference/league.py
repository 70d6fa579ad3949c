"""Earlier versions of the policy as its opponents: which there are, who plays, and how the policy fares against them.

All of it follows from the published versions, the seed and the results so far, so that a resumed run draws what it drew
before. Steps are optimizer steps: the weights "after" a step are the newest that were published by then.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from preference.tournament import share
from preference.types import POLICY, Candidate, JudgedGroup, Prompt, Rating, Response, Verdict, Version, content_id

INITIAL = Version(0, 0)  # the model that training began with
LEAGUE = "league"  # the player whose results count for each of its versions

Draw = Literal["uniform", "win_rate"]


def as_of(versions: Iterable[Version], step: int) -> Version:
    """The weights after ``step``: those of the last step until then that published any, else the initial ones."""
    return max((v for v in versions if v.step <= step), key=lambda v: v.step, default=INITIAL)


def since(versions: Collection[Version], step: int) -> set[Version]:
    """The weights after ``step`` and everything newer."""
    return {as_of(versions, step), *(v for v in versions if v.step > step)}


def snapshots(versions: Iterable[Version], every: int) -> tuple[Version, ...]:
    """The first version of each ``every`` steps, the initial one among them; oldest first."""
    first: dict[int, Version] = {}
    for version in sorted({INITIAL, *versions}, key=lambda v: v.step):
        first.setdefault(version.step // every, version)
    return tuple(first.values())


def members(versions: Iterable[Version], every: int, size: int, before: int) -> tuple[Version, ...]:
    """The league of a policy with the weights after ``before``: its newest ``size`` snapshots that are older."""
    past = [v for v in snapshots(versions, every) if v.step < before]
    return tuple(past[-size:]) or (INITIAL,)


# -- how the policy fares --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """One response of the policy against one of an opponent."""

    player: str
    version: Version | None
    """Weights of the opponent, where it is an earlier version of the policy."""
    score: float
    """1: the policy won, 0: it lost, 1/2: a tie."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Results against one opponent."""

    games: int = 0
    points: float = 0.0

    def __add__(self, result: Result) -> Tally:
        return Tally(self.games + 1, self.points + result.score)

    @property
    def win_rate(self) -> float:
        """Of the policy, ties half; nan without a game."""
        return self.points / self.games if self.games else float("nan")

    @property
    def expected(self) -> float:
        """By the rule of succession (Laplace): with a win and a loss on top, so that it is never 0 or 1."""
        return (self.points + 1) / (self.games + 2)


def results(judged: Iterable[JudgedGroup]) -> Iterator[Result]:
    """Every comparison of a policy's response with an opponent's: two ratings, or a verdict on the two.

    What failed or was abstained from is no result.
    """
    for group in judged:
        responses = {c.id: c for c in group.group.candidates}
        rated = {j.candidate_id: j.value for j in group.judgements if isinstance(j, Rating)}
        own = [c for c in responses.values() if c.player == POLICY]
        for other in (c for c in responses.values() if c.player != POLICY):
            for mine in own:
                if mine.id in rated and other.id in rated:
                    difference = rated[mine.id] - rated[other.id]
                    yield _result(other, 0.5 if difference == 0 else float(difference > 0))
        for j in group.judgements:
            if (
                not isinstance(j, Verdict)
                or (p := share(j)) is None
                or not {j.first_id, j.second_id} <= responses.keys()
            ):
                continue
            first, second = responses[j.first_id], responses[j.second_id]
            if (first.player == POLICY) != (second.player == POLICY):
                won = 0.5 if p == 0.5 else float(p > 0.5)
                yield _result(second, won) if first.player == POLICY else _result(first, 1 - won)


def _result(opponent: Response, score: float) -> Result:
    return Result(opponent.player, opponent.version_max if isinstance(opponent, Candidate) else None, score)


# -- who plays -------------------------------------------------------------------------------------------------------


def draw(
    league: Sequence[Version], how: Draw, against: Mapping[int, Tally], seed: int, step: int, prompt: Prompt
) -> Version:
    """The member that plays ``prompt`` at ``step``. ``against``: the policy's results, by the step of its weights.

    ``uniform``: each is as likely. ``win_rate``: in proportion to how likely it is to beat the policy, which is
    prioritised fictitious self-play with AlphaStar's linear weighting (Vinyals et al., Nature 575, 2019); a member
    that nobody has met counts as an equal.
    """
    rng = random.Random(content_id("league", seed, step, prompt.id))
    if how == "uniform":
        return rng.choice(league)
    weights = [1 - against.get(v.step, Tally()).expected for v in league]
    return rng.choices(league, weights)[0]
