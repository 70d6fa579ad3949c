"""Bounded staleness: how many prompts may begin sampling now, so that none is older than allowed when it is trained.

A step trains one batch of B prompts. Step s is taken by the policy of version s - 1 and makes version s, once samplers
serve it. A prompt that begins sampling while version v is served and is trained in step s has the age (s - 1) - v. With
``max_staleness`` k it may be trained up to step v + 1 + k.

Let v be the version served, t >= v the last step taken (t > v: taken, its weights not served yet) and u the prompts
outstanding: sampling, being judged, being scored, or waiting for the trainer. Whatever is outstanding, and whatever
begins now, has its places in steps t + 1 ... v + 1 + k, so

    admissible = min((v + 1 + k - t) B + spare, queue) - u

* A prompt that fails, makes no pair or grows too old leaves u: its place is admissible again at once. Dropping and
  replenishing are one subtraction, and nothing drains.
* k = 0: (v + 1 - t) B is B while the trainer waits and 0 from the moment it takes a step until samplers serve it, so
  sampling and training strictly alternate.
* There is no deadlock: with nothing in flight and t = v, either u >= B and a batch can be taken, or u < B <=
  min((k + 1) B, queue) and something is admissible. What is admitted has its place in the queue already.
* k = 1 hides the shorter of sampling and training completely. A chain of latency L (from admission to served weights)
  whose slowest stage takes M makes a step every max(M, L / (k + 1)): k = ceil(L / M) - 1 is enough.

Which prompts make a batch (``Order``) decides whether any grow too old:

* ``admitted``: the B that were admitted first. Timing does not shape batches; the trainer waits for stragglers, and as
  at most (k + 1) B are outstanding the last one is trained in time.
* ``in_time``: the oldest B that are ready, but only if all others can still be trained in time: for every last step d,
  at most (d - t - 1) B of those left have to be trained by then. As before step t + 1 at most (d - t) B had, waiting
  for what is in flight always leads there (the earliest deadline first, Liu & Layland 1973).
* ``finished``: the oldest B that are ready. Stragglers may grow too old: they are dropped, counted and replenished.
  ``spare`` prompts more are sampled than needed, so that a batch seldom waits for its longest responses.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from preference.admission_rules import AdmissionRules as AdmissionRules
from preference.types import Fate

Ticket = int
"""An admitted prompt; tickets are numbered in the order of admission."""


class Stage(StrEnum):
    """Where an admitted prompt is before it is ready, in the order it goes through."""

    SAMPLE = "sample"
    JUDGE = "judge"
    REFERENCE = "reference"


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step trains, and what grew too old as it was taken."""

    step: int
    tickets: tuple[Ticket, ...]
    ages: tuple[int, ...]
    """Per ticket, in versions: at most ``max_staleness``."""
    stale: tuple[Ticket, ...]
    """Dropped: no later step may train them. Those still in flight are to be aborted; their places are open again."""


class Admission:
    """The state of one run. Prompts are told apart by tickets; what they are is the caller's business.

        admissible() -> admit() -> entered(JUDGE) -> entered(REFERENCE) -> finished() -> take() -> now_served()
                                        lost(): failed, or replaced for having made no pair

    The caller takes the next batch when the trainer is free, and says when samplers serve a step's weights; it may take
    the next step before that.
    """

    def __init__(self, rules: AdmissionRules, done: int = 0, served: int | None = None) -> None:
        """``done`` steps have been trained or have their batches. Samplers serve the weights of step ``served``; None:
        of the last one.
        """
        self.rules = rules
        self.served = done if served is None else served
        """The version that samplers serve."""
        self.taken = done
        """The last step whose batch was taken."""
        self.fates: Counter[Fate] = Counter()
        """Why prompts were replaced."""
        self.ages: Counter[int] = Counter()
        """Trained prompts by age in versions."""
        self.in_stage: Counter[Stage] = Counter()
        self._number = 0
        self._flight: dict[Ticket, tuple[int, Stage]] = {}  # oldest version that may have sampled it, where it is
        self._begun: deque[Ticket] = deque()  # tickets in flight in the order of admission, and some that are not
        self._ready: list[tuple[int, Ticket, int]] = []  # heap of (rank, ticket, version)
        self._free: deque[tuple[int, Ticket, int]] = deque()  # order `admitted`: ready, and nothing older in flight
        self._flying: Counter[int] = Counter()  # in flight by version
        self._waiting: Counter[int] = Counter()  # ready by version
        self._replaced = 0
        self._empty: set[Ticket] = set()  # ready: places that stay empty

    # -- sampling --------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Prompts admitted and not yet ready."""
        return len(self._flight)

    @property
    def ready(self) -> int:
        """Prompts that wait for the trainer, and places that stay empty."""
        return len(self._ready) + len(self._free)

    @property
    def outstanding(self) -> int:
        return self.in_flight + self.ready

    def admissible(self) -> int:
        """How many prompts may begin sampling now."""
        last = self.served + 1 + self.rules.max_staleness
        if self.rules.steps is not None:
            last = min(last, self.rules.steps)
        if last <= self.taken:
            return 0
        room = (last - self.taken) * self.rules.batch + self.rules.spare
        if self.rules.queue is not None:
            room = min(room, self.rules.queue)
        return max(0, room - self.outstanding)

    def admit(self) -> Ticket:
        """Begin a prompt under the version served. Raises RuntimeError where nothing is admissible."""
        if self.admissible() < 1:
            raise RuntimeError(f"no prompt is admissible: {self.describe()}")
        return self._begin()

    def admit_all(self) -> list[Ticket]:
        """Begin as many prompts as are admissible."""
        return [self._begin() for _ in range(self.admissible())]

    def _begin(self) -> Ticket:
        self._number += 1
        self._fly(self._number, self.served, Stage.SAMPLE)
        self._begun.append(self._number)
        return self._number

    def entered(self, ticket: Ticket, stage: Stage) -> None:
        """It goes on to ``stage``. A ticket that was dropped meanwhile is passed over."""
        if ticket in self._flight:
            version, before = self._flight[ticket]
            self.in_stage[before] -= 1
            self.in_stage[stage] += 1
            self._flight[ticket] = version, stage

    def restarted(self, ticket: Ticket) -> None:
        """It was aborted and is sampled anew, by the version served now."""
        if ticket in self._flight:
            self._land(ticket)
            self._fly(ticket, self.served, Stage.SAMPLE)

    def finished(self, ticket: Ticket, version: int | None = None) -> bool:
        """It is ready to be trained. ``version``: of the oldest weights that sampled any of it, if not what was served
        when it was admitted. False: it is too old, or was dropped before; its place is open again.
        """
        if ticket not in self._flight:
            return False
        admitted = self._land(ticket)
        version = admitted if version is None else version
        return self._put(ticket, version, ticket)

    def lost(self, ticket: Ticket, fate: Fate) -> None:
        """It failed, or made no pair and is to be replaced: counted, and its place is open again."""
        if ticket not in self._flight:
            return
        version = self._land(ticket)
        self.fates[fate] += 1
        self._replaced += 1
        if self.rules.max_replaced is not None and self._replaced > self.rules.max_replaced:
            self._empty.add(ticket)
            self._put(ticket, version, ticket)

    def restored(self, version: int) -> Ticket | None:
        """Something ready that was not admitted here: journaled by an earlier attempt, or judged late by people.

        It takes up a place and is trained before what is sampled. None: it is too old and was counted as that.
        """
        self._number += 1
        return self._number if self._put(self._number, version, 0) else None

    # -- training --------------------------------------------------------------------------------------------------

    def take(self) -> Batch | None:
        """The next step's batch, if it is complete: from here on it belongs to the trainer."""
        if not self._takeable():
            return None
        pop = self._free.popleft if self.rules.order == "admitted" else lambda: heapq.heappop(self._ready)
        taken = [pop() for _ in range(self.rules.batch)]
        for _, _, version in taken:
            self._drop(self._waiting, version)
        if self._empty:
            filled = [entry for entry in taken if entry[1] not in self._empty]
            self._empty.difference_update(ticket for _, ticket, _ in taken)
            taken = filled
        ages = tuple(self.taken - version for _, _, version in taken)
        self.taken += 1
        self._replaced = 0
        self.ages.update(ages)
        return Batch(self.taken, tuple(ticket for _, ticket, _ in taken), ages, self._expire())

    def now_served(self, version: int) -> None:
        """Every sampler serves the weights of step ``version``; also to be called for a step that trained nothing."""
        if not self.served < version <= self.taken:
            raise ValueError(f"version {version}: {self.served} is served and {self.taken} is the last step taken")
        self.served = version

    # -- back-pressure ---------------------------------------------------------------------------------------------

    def trainer_waits_for(self) -> Stage | Literal["prompts"] | None:
        """What keeps the next batch from being complete: the stage that holds most of what is nearest to it.

        ``prompts``: nothing is under way, the caller has not admitted what is admissible. None: it is complete.
        """
        if self._takeable():
            return None
        missing = self.rules.batch - self.ready
        if missing <= 0 or self.rules.order == "admitted":  # it waits for one straggler, not for numbers
            oldest = self._oldest()
            return "prompts" if oldest is None else self._flight[oldest][1]
        most: Stage | None = None
        held = 0
        for stage in reversed(Stage):
            here = min(self.in_stage[stage], missing)
            missing -= here
            if here > held:
                most, held = stage, here
        return most or "prompts"

    def sampler_waits_for(self) -> Literal["trainer", "queue"] | None:
        """Why no further prompt begins: the staleness bound (a version has to be served first), or a full queue."""
        if self.admissible():
            return None
        full = self.rules.queue is not None and self.outstanding >= self.rules.queue
        return "queue" if full else "trainer"

    def describe(self) -> str:
        """The arithmetic of ``admissible`` with its present numbers."""
        r = self.rules
        line = (
            f"({self.served} + 1 + {r.max_staleness} - {self.taken}) x {r.batch} + {r.spare} places, "
            f"{self.in_flight} in flight, {self.ready} ready"
        )
        return line if r.queue is None else f"{line}, queue of {r.queue}"

    # -- bookkeeping -----------------------------------------------------------------------------------------------

    def _fly(self, ticket: Ticket, version: int, stage: Stage) -> None:
        self._flight[ticket] = version, stage
        self._flying[version] += 1
        self.in_stage[stage] += 1

    def _land(self, ticket: Ticket) -> int:
        version, stage = self._flight.pop(ticket)
        self._drop(self._flying, version)
        self.in_stage[stage] -= 1
        return version

    def _put(self, ticket: Ticket, version: int, place: int) -> bool:
        if version + self.rules.max_staleness < self.taken:
            self.fates[Fate.STALE] += 1
            return False
        rank = place if self.rules.order == "admitted" else version
        heapq.heappush(self._ready, (rank, ticket, version))
        self._waiting[version] += 1
        return True

    def _oldest(self) -> Ticket | None:
        while self._begun and self._begun[0] not in self._flight:
            self._begun.popleft()
        return self._begun[0] if self._begun else None

    def _takeable(self) -> bool:
        if self.ready < self.rules.batch or (self.rules.steps is not None and self.taken >= self.rules.steps):
            return False
        if self.rules.order == "admitted":
            oldest = self._oldest()
            while self._ready and (oldest is None or self._ready[0][0] < oldest):
                self._free.append(heapq.heappop(self._ready))
            return len(self._free) >= self.rules.batch
        return self.rules.order == "finished" or self._leaves_none_behind()

    def _leaves_none_behind(self) -> bool:
        """Whether all that is in flight can still be trained in time if the oldest ready ones go now."""
        flying = waiting = 0
        for version in sorted(self._flying | self._waiting):
            flying += self._flying[version]
            waiting += self._waiting[version]
            left = flying + max(0, waiting - self.rules.batch)
            if flying and left > (version + self.rules.max_staleness - self.taken) * self.rules.batch:
                return False
        return True

    def _expire(self) -> tuple[Ticket, ...]:
        """Drop what no later step may train."""
        least = self.taken - self.rules.max_staleness
        if min(self._flying, default=least) >= least and min(self._waiting, default=least) >= least:
            return ()
        stale = [ticket for ticket, (version, _) in self._flight.items() if version < least]
        for ticket in stale:
            self._land(ticket)
        held = [*self._free, *self._ready]
        stale += [ticket for _, ticket, version in held if version < least and ticket not in self._empty]
        self._free = deque(entry for entry in self._free if entry[2] >= least)
        self._ready = [entry for entry in self._ready if entry[2] >= least]
        heapq.heapify(self._ready)
        self._waiting = Counter({v: n for v, n in self._waiting.items() if v >= least})
        self._empty &= {ticket for _, ticket, _ in (*self._free, *self._ready)}
        self.fates[Fate.STALE] += len(stale)
        return tuple(stale)

    @staticmethod
    def _drop(counts: Counter[int], version: int) -> None:
        """One less of ``version``; versions without any are forgotten."""
        counts[version] -= 1
        if not counts[version]:
            del counts[version]
