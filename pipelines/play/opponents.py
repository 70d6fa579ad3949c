"""Opponents: players whose responses stand beside the policy's own in every prompt's group.

    sample(prompts) ──> the policy's samplers ─────────────────────────────────┐
                   ├──> earlier versions: one pool, one version after another ─┤──> a prompt's group
                   ├──> other models: a pool each, in tokens of their own ─────┤    once all have answered
                   └──> the data's own responses ──────────────────────────────┘
    load(weights)  ──> run directory/players, for as long as somebody may ask for them (``pipelines.play.versions``)

Who plays what follows from (seed, step, results that are journaled): a resumed run repeats it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actors.requests import SamplePlan
from configs.opponents import DataPlayer, LeaguePlayer, ModelPlayer, Opponent, PastPlayer, PreviousPlayer
from configs.runs import RunConfig
from pipelines.play.guests import Translator, Unusable
from pipelines.play.merging import merged
from pipelines.play.versions import Versions
from pipelines.stages import Observer, Sampler
from preference.league import INITIAL, LEAGUE, Result, Tally, as_of, draw, members, results, since, snapshots
from preference.reports import OpponentMetrics
from preference.summaries import faced
from preference.types import Candidate, CandidateGroup, JudgedGroup, Prompt, Response, Version, Written


class Schedule:
    """Which weights the players of a run have in which step. At ``step`` the policy is sure to have those after
    step - 1 - ``run.max_staleness``: all else is counted from there.
    """

    def __init__(self, config: RunConfig) -> None:
        self._seed, self._ahead, self._reference = config.run.seed, config.run.max_staleness, config.reference
        self._players = [o for o in config.opponents if isinstance(o, PastPlayer)]

    def base(self, step: int) -> int:
        """Steps that the policy's weights have seen, at least, when ``step`` is sampled."""
        return step - 1 - self._ahead

    def version(
        self, player: PastPlayer, step: int, prompt: Prompt, versions: Collection[Version], against: Mapping[int, Tally]
    ) -> Version:
        """The weights with which ``player`` answers ``prompt``; ``against``: see ``preference.league.draw``."""
        if isinstance(player, PreviousPlayer):
            return as_of(versions, self.base(step) - player.lag)
        if isinstance(player, LeaguePlayer):
            league = members(versions, player.every, player.size, self.base(step))
            return draw(league, player.draw, against, self._seed, step, prompt)
        return as_of(versions, self._refreshed(step))

    def _refreshed(self, step: int) -> int:
        """Steps after which the reference was moved last."""
        if self._reference.refresh == "fixed":
            return INITIAL.step
        return self.base(step) // self._reference.every * self._reference.every

    def enters(self, version: Version, versions: Collection[Version]) -> bool:
        """Whether anybody may ask for weights that are just published."""
        for player in self._players:
            if isinstance(player, LeaguePlayer):
                if version in snapshots([*versions, version], player.every):
                    return True
            elif isinstance(player, PreviousPlayer) or self._reference.refresh == "periodic":
                return True
        return False

    def needed(self, step: int, versions: Collection[Version]) -> set[Version]:
        """Of ``versions`` those that ``step`` or a later one may ask for."""
        found: set[Version] = set()
        for player in self._players:
            if isinstance(player, PreviousPlayer):
                found |= since(versions, self.base(step) - player.lag)
            elif isinstance(player, LeaguePlayer):
                league = members(versions, player.every, player.size, self.base(step))
                newer = (v for v in snapshots(versions, player.every) if v.step >= league[-1].step)
                found |= {*league, *newer}
            elif self._reference.refresh == "periodic":
                found |= since(versions, self._refreshed(step))
        return found


def in_turn(asked: Iterable[Version], served: Version) -> list[Version]:
    """The order in which an engine serves versions: first what it has, so that it loads each of the others once.

    The oldest come last: they are what the next step asks for again.
    """
    wanted = set(asked)
    return [v for v in (served,) if v in wanted] + sorted(wanted - {served}, reverse=True)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one player says to one prompt; nothing where it cannot be used."""

    place: int  # of the player in the group: the policy is 0
    prompt_id: str
    responses: tuple[Response, ...]


@dataclass(frozen=True, slots=True)
class Seat:
    """A player at its place in every group."""

    place: int
    first_index: int  # of its candidates, counted through the group
    player: Opponent

    def plan(self, plan: SamplePlan) -> SamplePlan:
        """The same plan with ids and seeds of its own."""
        return replace(plan, purpose=f"{plan.purpose}/{self.player.name}", candidates=self.player.candidates)

    def seated(self, number: int, candidate: Candidate) -> Candidate:
        return replace(candidate, player=self.player.name, index=self.first_index + number)


class Past:
    """The pool of engines that plays with earlier weights of the policy."""

    def __init__(self, pool: Sampler, kept: Versions) -> None:
        self.pool, self.kept = pool, kept
        self.loads: Counter[int] = Counter()  # by step
        self._turn = asyncio.Lock()

    async def answers(
        self, asked: Mapping[Version, Sequence[tuple[Seat, Sequence[Prompt]]]], plan: SamplePlan
    ) -> AsyncIterator[Answer]:
        """All of a step's requests, version after version; steps that are under way at once take turns."""
        async with self._turn:
            for version in in_turn(asked, self.pool.version):
                if version != self.pool.version:
                    await self.pool.load(str(await self.kept.directory(version)), version)
                    self.loads[plan.step] += 1
                async for answer in merged([self._one(seat, prompts, plan) for seat, prompts in asked[version]]):
                    yield answer

    async def _one(self, seat: Seat, prompts: Sequence[Prompt], plan: SamplePlan) -> AsyncIterator[Answer]:
        async for group in self.pool.sample(prompts, seat.plan(plan)):
            yield Answer(seat.place, group.prompt.id, tuple(seat.seated(i, c) for i, c in enumerate(group.sampled)))


@dataclass(frozen=True, slots=True)
class Guest:
    """Another model, and how it is understood."""

    pool: Sampler
    translator: Translator


class Opponents:
    """A sampler of whole groups, and a consumer of published weights."""

    def __init__(
        self,
        config: RunConfig,
        policy: Sampler,
        past: Past | None,
        guests: Mapping[str, Guest],
        data: Mapping[str, Written],
        observer: Observer,
    ) -> None:
        """``past``: needed by players with earlier weights; ``guests`` by name; ``data``: responses by prompt id."""
        self._policy, self._past, self._guests, self._data, self._observer = policy, past, guests, data, observer
        self._schedule = Schedule(config)
        index = config.sampling.candidates
        self._seats: list[Seat] = []
        for place, player in enumerate(config.opponents, start=1):
            self._seats.append(Seat(place, index, player))
            index += player.candidates
        self._results: dict[int, tuple[Result, ...]] = {}
        self._unusable: dict[int, set[str]] = {}  # prompts by step
        self._explained: set[str] = set()  # players about whose responses something was said

    @property
    def version(self) -> Version:
        """Of the policy."""
        return self._policy.version

    # -- groups ------------------------------------------------------------------------------------------------------

    async def sample(self, prompts: Sequence[Prompt], plan: SamplePlan) -> AsyncIterator[CandidateGroup]:
        """Yield each prompt's group as soon as every player has answered: the policy's candidates first."""
        streams = [self._own(prompts, plan), *(self._guest(s, prompts, plan) for s in self._of(ModelPlayer))]
        streams += [self._written(seat, prompts) for seat in self._of(DataPlayer)]
        if self._past is not None:
            streams.append(self._past.answers(self._asked(prompts, plan.step), plan))
        by_id = {p.id: p for p in prompts}
        said: dict[str, dict[int, tuple[Response, ...]]] = {p.id: {} for p in prompts}
        async for answer in merged(streams):
            said[answer.prompt_id][answer.place] = answer.responses
            if len(said[answer.prompt_id]) == len(self._seats) + 1:
                places = sorted(said.pop(answer.prompt_id).items())
                yield CandidateGroup(by_id[answer.prompt_id], tuple(r for _, responses in places for r in responses))

    def _of(self, kind: type[ModelPlayer] | type[DataPlayer]) -> list[Seat]:
        return [seat for seat in self._seats if isinstance(seat.player, kind)]

    def _asked(self, prompts: Sequence[Prompt], step: int) -> dict[Version, list[tuple[Seat, list[Prompt]]]]:
        """Which version answers which prompts for whom."""
        assert self._past is not None
        versions, against = self._past.kept.versions, self._against(step)
        asked: dict[Version, dict[int, tuple[Seat, list[Prompt]]]] = {}
        for seat in self._seats:
            if isinstance(seat.player, PastPlayer):
                for prompt in prompts:
                    version = self._schedule.version(seat.player, step, prompt, versions, against)
                    asked.setdefault(version, {}).setdefault(seat.place, (seat, []))[1].append(prompt)
        return {version: list(places.values()) for version, places in asked.items()}

    async def _own(self, prompts: Sequence[Prompt], plan: SamplePlan) -> AsyncIterator[Answer]:
        async for group in self._policy.sample(prompts, plan):
            yield Answer(0, group.prompt.id, group.candidates)

    async def _guest(self, seat: Seat, prompts: Sequence[Prompt], plan: SamplePlan) -> AsyncIterator[Answer]:
        guest = self._guests[seat.player.name]
        readable: list[Prompt] = []
        for prompt in prompts:
            try:
                readable.append(guest.translator.prompt(prompt))
            except Unusable as error:
                self._explain(seat, plan.step, prompt.id, error)
                yield Answer(seat.place, prompt.id, ())
        by_id = {p.id: p for p in prompts}
        async for group in guest.pool.sample(readable, seat.plan(plan)):
            responses: list[Response] = []
            for number, candidate in enumerate(group.sampled):
                try:
                    responses.append(guest.translator.response(by_id[group.prompt.id], seat.seated(number, candidate)))
                except Unusable as error:
                    self._explain(seat, plan.step, group.prompt.id, error)
            yield Answer(seat.place, group.prompt.id, tuple(responses))

    async def _written(self, seat: Seat, prompts: Sequence[Prompt]) -> AsyncIterator[Answer]:
        for prompt in prompts:
            yield Answer(seat.place, prompt.id, (self._data[prompt.id],))

    def _explain(self, seat: Seat, step: int, prompt_id: str, error: Unusable) -> None:
        """Every response that is lost is counted; the first of each player is explained."""
        self._unusable.setdefault(step, set()).add(prompt_id)
        if seat.player.name not in self._explained:
            self._explained.add(seat.player.name)
            self._observer.message(f"opponent {seat.player.name}: no response to prompt {prompt_id}: {error}")

    # -- results -----------------------------------------------------------------------------------------------------

    def judged(self, step: int, groups: Sequence[JudgedGroup]) -> OpponentMetrics:
        """How the policy fared in ``step``, which later draws go by; a replayed step counts as it did before."""
        self._results[step] = tuple(results(groups))
        loads = self._past.loads[step] if self._past is not None else 0
        return OpponentMetrics(faced(self._results[step]), loads, len(self._unusable.get(step, ())))

    def _against(self, step: int) -> dict[int, Tally]:
        """Results against the league of the steps that were trained, for certain, before ``step`` is sampled."""
        tallies: dict[int, Tally] = {}
        for known, found in self._results.items():
            if known <= self._schedule.base(step):
                for result in found:
                    if result.player == LEAGUE and result.version is not None:
                        at = result.version.step
                        tallies[at] = tallies.get(at, Tally()) + result
        return tallies

    # -- weights -----------------------------------------------------------------------------------------------------

    async def load(self, directory: str, version: Version) -> float:
        """Keep published weights that may still be asked for, and drop what may not any more; returns seconds."""
        started = time.monotonic()
        if self._past is not None:
            kept = self._past.kept
            kept.published(version)
            if self._schedule.enters(version, kept.versions):
                await kept.keep(Path(directory), version)
            kept.keep_only(self._schedule.needed(version.step + 1, kept.versions))
        return time.monotonic() - started
