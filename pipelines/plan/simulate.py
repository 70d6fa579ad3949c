"""The asynchronous pipeline, event by event, driven by the admission code of the real loop.

    admission ──> engines ──> driver, judges ──> reference ──> trainer ──> tree of weights ──> engines
        ^                                                        │ take         │ now_served
        └────────────────────────────────────────────────────────┴──────────────┘

What is simulated: continuous batching with log-normal lengths and a full KV cache, judges, reference actors and the
driver as queues, optimizer steps, publications that pause engines level by level of the tree, engines and trainers
that fail. What is not: contention between publications and collectives, uneven packing, people, the network's own
faults. Times of one prompt through judge, reference and driver are constant.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pipelines.plan.engines import Draws, Engine, Servers
from pipelines.plan.pipeline import Pipeline, Simulated
from preference.admission import Admission, Stage
from preference.types import Fate
from preference.waiting import WaitClock

Action = Callable[..., None]


class Simulation:
    def __init__(
        self,
        pipeline: Pipeline,
        seed: int = 0,
        lengths: Iterator[float] | None = None,
        train_s: Iterator[float] | None = None,
    ) -> None:
        """``lengths``: tokens of every prompt's responses; ``train_s``: seconds of every step; None: they are drawn."""
        self._p = p = pipeline
        self._train_s = train_s
        if p.rules.steps is None:
            raise ValueError("a simulation needs rules.steps, the number of steps to simulate")
        self._random = np.random.default_rng(seed)
        self._admission = Admission(p.rules)
        self._engines = [Engine() for _ in range(p.engines)]
        self._draws = Draws(p.lengths, p.candidates, self._random, lengths)
        self._driver = Servers(1, p.driver_s)
        self._judges = Servers(p.judges, p.judge_s)
        self._references = Servers(p.references, p.reference_s)
        self._events: list[tuple[float, int, Action, tuple[Any, ...]]] = []
        self._number = self._popped = 0
        self._now = 0.0
        self._next_engine = 0
        self._engine_of: dict[int, int] = {}  # tickets that are being sampled
        self._changed: set[int] = set()  # engines whose next end has to be found anew
        self._training = False
        self._held_until, self._held_by = 0.0, ""  # the trainer takes no step before that, and why
        self._train_run = 0  # of the step under way: a failure voids its end
        self._step = 0
        self._tied: set[int] = set()
        self._pairs: list[int] = []  # by step
        self.published_at: list[float] = []
        """When each step's weights left the trainer, seconds."""
        self._train_busy = 0.0
        self._clock = WaitClock(0.0)
        self._since_note = 0
        self._restarted = 0
        self._failures: Counter[str] = Counter()

    def run(self) -> Simulated:
        """All steps of ``rules.steps``."""
        steps = self._p.rules.steps
        assert steps is not None
        self._schedule_failures()
        self._fill()
        self._reschedule()
        self._note()
        while len(self.published_at) < steps:
            self._now, _, action, given = heapq.heappop(self._events)
            self._popped += 1
            action(*given)
            if self._changed:
                self._reschedule()
        return self._result()

    # -- events ----------------------------------------------------------------------------------------------------

    def _at(self, when: float, action: Action, *given: Any) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, action, given))

    def _fill(self) -> None:
        for ticket in self._admission.admit_all():
            self._submit(ticket)

    def _submit(self, ticket: int) -> None:
        """To the engines in turn, as the sampler pool does; those that restart are passed over."""
        for _ in self._engines:
            number = self._next_engine
            self._next_engine = (number + 1) % len(self._engines)
            engine = self._engines[number]
            if engine.down_until <= self._now:
                break
        self._engine_of[ticket] = number
        engine.queue.append(ticket)
        self._begin_queued(number, engine)

    def _begin_queued(self, number: int, engine: Engine) -> None:
        token_s = self._p.token_s
        engine.advance(self._now, token_s)
        while engine.queue and (not engine.running or engine.load + 0.5 <= self._p.slots):
            tokens, weight = self._draws.next()
            if self._p.prefill_s:
                tokens += self._p.prefill_s / token_s(engine.load + weight)
            engine.begin(engine.queue.popleft(), tokens, weight)
        self._changed.add(number)

    def _reschedule(self) -> None:
        for number in self._changed:
            engine = self._engines[number]
            engine.generation += 1
            when = engine.next_end(self._now, self._p.token_s)
            if when is not None:
                self._at(when, self._sampled, number, engine.generation)
        self._changed.clear()

    def _sampled(self, number: int, generation: int) -> None:
        engine = self._engines[number]
        if generation != engine.generation:
            return
        engine.advance(self._now, self._p.token_s)
        for ticket in engine.ended():
            del self._engine_of[ticket]
            self._admission.entered(ticket, Stage.JUDGE)
            done = self._judges.serve(self._driver.serve(self._now))
            if done > self._now:
                self._at(done, self._judged, ticket)
            else:
                self._judged(ticket)
        self._begin_queued(number, engine)

    def _judged(self, ticket: int) -> None:
        if self._p.tie_rate and self._random.random() < self._p.tie_rate:
            self._tied.add(ticket)
            self._finished(ticket)
        elif self._p.reference_s:
            self._admission.entered(ticket, Stage.REFERENCE)
            self._at(self._references.serve(self._now), self._finished, ticket)
        else:
            self._finished(ticket)

    def _finished(self, ticket: int) -> None:
        if not self._admission.finished(ticket):
            self._fill()  # it was too old: another one takes its place
        self._train()

    # -- training and publication ------------------------------------------------------------------------------------

    def _train(self) -> None:
        if self._training or self._now < self._held_until:
            return
        batch = self._admission.take()
        if batch is None:
            self._since_note += 1
            if self._since_note * 64 > self._p.rules.batch:  # often enough to see the reason change
                self._note()
            return
        self._training, self._step = True, batch.step
        self._pairs.append(sum(ticket not in self._tied for ticket in batch.tickets))
        self._tied.difference_update(batch.tickets)
        self._note()
        self._abort(set(batch.stale))
        self._fill()
        self._run_step(0.0)

    def _note(self) -> None:
        self._since_note = 0
        if self._training:
            waits_for: str | None = None
        elif self._now < self._held_until:
            waits_for = self._held_by
        else:
            waits_for = self._admission.trainer_waits_for()
        self._clock.note(self._now, waits_for)

    def _run_step(self, delay: float) -> None:
        seconds = self._p.train_s
        if self._train_s is not None:
            seconds = next(self._train_s)
        elif self._p.train_spread:
            seconds *= float(self._random.lognormal(-(self._p.train_spread**2) / 2, self._p.train_spread))
        self._train_run += 1
        self._at(self._now + delay + seconds, self._trained, self._train_run, seconds)

    def _trained(self, run: int, seconds: float) -> None:
        if run != self._train_run:
            return
        self._train_busy += seconds
        self._at(self._now + self._p.path.gather_s, self._publish, self._step)

    def _publish(self, step: int) -> None:
        path = self._p.path
        self.published_at.append(self._now)
        self._training = False
        if not self._p.load_beside_training:
            self._hold(path.seconds - path.gather_s, "weights")
        self._note()
        per_node = math.ceil(len(self._engines) / path.nodes)
        for level, (first, last) in enumerate(path.levels()):
            arrives = self._now + path.transfer_s + level * path.hop_s
            self._at(arrives, self._load, first * per_node, last * per_node)
        self._at(self._now + path.seconds - path.gather_s, self._serve, step)
        self._train()

    def _load(self, first: int, last: int) -> None:
        for number in range(first, min(last, len(self._engines))):
            self._engines[number].pause(self._now, self._p.path.load_s, self._p.token_s)
            self._changed.add(number)

    def _serve(self, step: int) -> None:
        self._admission.now_served(step)
        self._fill()
        self._note()
        self._train()

    def _abort(self, tickets: set[int]) -> None:
        self._tied -= tickets
        by_engine: dict[int, set[int]] = {}
        for ticket in tickets & self._engine_of.keys():
            by_engine.setdefault(self._engine_of.pop(ticket), set()).add(ticket)
        for number, mine in by_engine.items():
            engine = self._engines[number]
            engine.advance(self._now, self._p.token_s)
            engine.forget(mine)
            self._begin_queued(number, engine)

    # -- failures ----------------------------------------------------------------------------------------------------

    def _schedule_failures(self) -> None:
        p = self._p
        for mean, failure in (
            (p.engine_mtbf_s / p.engines, self._engine_fails),
            (p.trainer_mtbf_s, self._trainer_fails),
        ):
            if math.isfinite(mean):
                self._at(float(self._random.exponential(mean)), self._fail, mean, failure)

    def _fail(self, mean: float, failure: Action) -> None:
        failure()
        self._at(self._now + float(self._random.exponential(mean)), self._fail, mean, failure)

    def _engine_fails(self) -> None:
        """Its prompts are sampled again elsewhere, with the weights served now."""
        self._failures["sampler"] += 1
        number = int(self._random.integers(len(self._engines)))
        engine = self._engines[number]
        engine.pause(self._now, self._p.restart_s, self._p.token_s)
        engine.down_until = self._now + self._p.restart_s
        lost = engine.drop_all()
        self._changed.add(number)
        self._restarted += len(lost)
        for ticket in lost:
            self._admission.restarted(ticket)
            self._submit(ticket)

    def _trainer_fails(self) -> None:
        """The group restarts from the newest checkpoint and trains again, from the ledger, what came after it."""
        self._failures["trainer"] += 1
        replayed = (self._step - 1) % self._p.checkpoint_steps if self._step else 0
        again = self._p.restart_s + replayed * self._p.train_s
        if self._training:
            self._run_step(again)
        else:
            self._hold(again, "restart")
            self._note()
            self._at(self._held_until, self._train)

    def _hold(self, seconds: float, by: str) -> None:
        """The trainer takes no step for so long."""
        if self._now + seconds > self._held_until:
            self._held_until, self._held_by = self._now + seconds, by

    # -- result ------------------------------------------------------------------------------------------------------

    def _result(self) -> Simulated:
        for engine in self._engines:
            engine.advance(self._now, self._p.token_s)
        steps, now = len(self.published_at), self._now
        first, last = _steady(steps, self._p.rules.max_staleness + 1)
        period = (self.published_at[last] - self.published_at[first]) / (last - first)
        return Simulated(
            steps=steps,
            seconds=now,
            period=period,
            pairs=sum(self._pairs),
            pairs_per_s=sum(self._pairs[first + 1 : last + 1]) / (last - first) / period,
            utilisation={
                "sampler": sum(e.busy for e in self._engines) / (len(self._engines) * now),
                "driver": self._driver.utilisation(now),
                "judge": self._judges.utilisation(now),
                "reference": self._references.utilisation(now),
                "trainer": self._train_busy / now,
            },
            waits=self._clock.shares(now),
            ages=dict(sorted(self._admission.ages.items())),
            stale=self._admission.fates[Fate.STALE],
            restarted=self._restarted,
            failures=dict(self._failures),
            events=self._popped,
        )


def _steady(steps: int, rounds: int) -> tuple[int, int]:
    """Indices of two steps between which all is at full stream: after a warm-up and before the samplers run dry.

    Steps come in rounds of max_staleness + 1; whole rounds lie between the two.
    """
    last = max(1, steps - 1 - rounds)
    first = min(max(2 * rounds, steps // 5), last - 1)
    return first + (last - first) % rounds if last - first > rounds else first, last
