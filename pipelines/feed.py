"""Prompts on their way to the trainer: begun as far as staleness allows, judged one by one, taken a step at a time.

    ask(s) ──> begun ──sample──> judge ──> ready ──take(s)──> the groups of step s
                 ^                           │
                 └──── too old: dropped <────┘       its place is open again, the next prompt begins

``preference.admission`` decides how many may begin and which make a batch; this puts prompts, tasks and journaled
groups to its tickets. A prompt is known by its place in the run: number ``n`` of all is the one at ``n`` modulo the
batch in the seeded batch of step ``n // batch + 1``, whichever step trains it in the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass

from pipelines.ledger.ledger import Begun
from preference.admission import Admission, AdmissionRules, Stage, Ticket
from preference.types import JudgedGroup, Prompt, Version


@dataclass(frozen=True, slots=True)
class Place:
    """A prompt and where it stands in the run."""

    step: int
    """The step in whose batch the run's permutation has it: its seeds and ids come from that."""
    number: int
    """Within that batch; decides which engine samples it."""
    prompt: Prompt
    name: str
    """Id of its first candidate."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a step is made of."""

    groups: tuple[JudgedGroup, ...]
    """In the order of the run's permutation; what people have been asked about and have not decided is not there."""
    stale: tuple[str, ...]
    """Names of what was dropped, too old to be trained, since the step before."""


Judging = Callable[[], Awaitable[JudgedGroup | None]]
"""Judges one group; None: people have been asked."""
Sample = Callable[[Sequence[Place]], AsyncIterator[tuple[Place, Judging]]]
"""Samples prompts of one batch side by side; yields each, with what judges it, as soon as it is complete."""


class Feed:
    """An attempt's prompts, from the first step whose data is not complete. Whatever fails comes out of ``take``."""

    def __init__(
        self,
        rules: AdmissionRules,
        batch: Callable[[int], Sequence[Place]],
        sample: Sample,
        begun: Begun,
        taken: int,
        served: int,
        version: Version,
    ) -> None:
        """``batch``: the permutation's prompts of a step. The data of ``taken`` steps is complete; ``served`` steps are
        done, and samplers serve ``version``.
        """
        self._admission = Admission(rules, taken, served)
        self._rules, self._batch, self._sample, self._begun = rules, batch, sample, begun
        # Where steps are made of the prompts of their own batches, all before is used.
        self._next = taken * rules.batch if rules.order == "admitted" else 0
        self._row: Sequence[Place] = ()  # of the batch that ``_next`` is in
        self._asked = self._complete = taken
        self._places: dict[Ticket, Place] = {}
        self._groups: dict[Ticket, JudgedGroup | None] = {}
        self._stale: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._newest_until = {version.step: served}
        """Last step after which weights, by theirs, were the newest."""
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()

    def ask(self, step: int) -> None:
        """Somebody will take ``step``: begin what may begin for it."""
        self._asked = max(self._asked, step)
        self._fill()

    async def take(self, step: int) -> Taken:
        """The groups of ``step``, as soon as they are decided and the data of the step before is complete."""
        while True:
            if self._failure is not None:
                raise self._failure
            if self._complete == step - 1 and (batch := self._admission.take()) is not None:
                break
            self._changed.clear()
            await self._changed.wait()
        self._drop(batch.stale)
        tickets = sorted(batch.tickets, key=lambda t: (self._places[t].step, self._places[t].number))
        found = [self._forget(t)[1] for t in tickets]
        stale, self._stale = tuple(self._stale), []
        self._notify()
        return Taken(tuple(g for g in found if g is not None), stale)

    def complete(self, step: int) -> None:
        """What was taken for ``step`` is journaled: the next one may be taken."""
        self._complete = step
        self._notify()

    def served(self, step: int, version: Version) -> None:
        """``step`` is done, and samplers serve ``version``: its weights, or older ones where it trained nothing."""
        self._newest_until[version.step] = step
        if step > self._admission.served:
            self._admission.now_served(step)
            self._notify()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    # -- on the way --------------------------------------------------------------------------------------------------

    def _notify(self) -> None:
        self._fill()
        self._changed.set()

    def _fill(self) -> None:
        """Begin what is admissible and wanted: as many as the steps asked for need, and the spare ones."""
        fresh: dict[int, list[Ticket]] = {}
        while (count := self._wanted()) > 0:  # more than once: what is known may be too old
            for _ in range(count):
                place = self._following()
                ticket = self._admission.admit()
                self._places[ticket] = place
                if (group := self._begun.decided.get(place.name)) is not None or place.name in self._begun.asked:
                    self._ready(ticket, group)
                else:
                    fresh.setdefault(place.step, []).append(ticket)
        for tickets in fresh.values():
            self._start(self._work(tickets))

    def _wanted(self) -> int:
        wanted = (self._asked - self._admission.taken) * self._rules.batch + self._rules.spare
        return min(self._admission.admissible(), wanted - self._admission.outstanding)

    def _following(self) -> Place:
        """The next prompt of the run that nothing is known to have used."""
        while True:
            step, number = divmod(self._next, self._rules.batch)
            if not self._row or self._row[0].step != step + 1:
                self._row = self._batch(step + 1)
            place = self._row[number]
            self._next += 1
            if place.name not in self._begun.used:
                return place

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
            self._changed.set()

    async def _work(self, tickets: Sequence[Ticket]) -> None:
        """Prompts that began together: each is judged as soon as its candidates are complete."""
        by_name = {self._places[t].name: t for t in tickets}
        async for place, judging in self._sample([self._places[t] for t in tickets]):
            ticket = by_name[place.name]
            self._admission.entered(ticket, Stage.JUDGE)
            self._start(self._judge(ticket, judging))

    async def _judge(self, ticket: Ticket, judging: Judging) -> None:
        self._ready(ticket, await judging())
        self._notify()

    def _ready(self, ticket: Ticket, group: JudgedGroup | None) -> None:
        if ticket not in self._places:
            return  # it was dropped meanwhile
        self._groups[ticket] = group
        versions = [c.version_min.step for c in group.group.own] if group is not None else []
        served = None
        if versions:
            oldest = min(versions)
            # What a dead incarnation sampled counts as sampled now: its steps are not in these weights.
            served = min(self._newest_until.get(oldest, oldest), self._admission.served)
        if not self._admission.finished(ticket, served):
            self._drop([ticket])

    def _drop(self, tickets: Sequence[Ticket]) -> None:
        self._stale += [self._forget(t)[0].name for t in tickets]

    def _forget(self, ticket: Ticket) -> tuple[Place, JudgedGroup | None]:
        return self._places.pop(ticket), self._groups.pop(ticket, None)
