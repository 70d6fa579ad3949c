"""The sampler pool: vLLM engines in Ray actors that answer prompts with versioned, seeded candidates.

    sample() ──submit──> engine i      one pump a sampler: hand over, poll, give out
                <──poll── finished     a prompt's group is complete -> yielded at once
    ask()    ──submit──> an engine     questions to the policy as a judge run between the sampling requests
                  lost ──> its work goes to the others; a fresh engine with the present weights takes its place

Prompt k of a batch always goes to engine k mod n and every candidate has its own seed, so that a batch is a function
of (seed, step, weights) alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from actors.engine import InProcessEngine
from actors.faults import ActorLost, Faults
from actors.pool import Crew, actor_options, remote_call
from actors.quiet import redirect_output
from actors.requests import Finished, Health, Request, Sampled, SamplePlan, SampleRequest
from actors.weights import WeightFiles
from configs.runs import RunConfig
from configs.schema import Group, Model, Sampling
from preference.types import Candidate, CandidateGroup, Prompt, Version

_POLL_SECONDS = 1.0  # how long finished candidates, an abort or a question may wait for the engine's next pause


class SamplerActor:
    """One engine, in the actor's main thread.

    A concurrency group would answer ``health`` during a poll but moves the calls to a thread other than the one that
    built the engine, which costs a CPU engine 30-50% of its speed. Polls are short instead: they are the heartbeat.
    """

    def __init__(self, model: Model, sampling: Sampling, seed: int, on_gpu: bool, log_file: str) -> None:
        redirect_output(Path(log_file))
        self._engine = InProcessEngine(model, sampling, seed, on_gpu=on_gpu)

    def submit(self, requests: Sequence[Request]) -> None:
        self._engine.submit(requests)

    def poll(self, seconds: float) -> list[Finished]:
        return self._engine.poll(seconds)

    def abort(self, request_ids: Sequence[str]) -> None:
        self._engine.abort(request_ids)

    def load(self, directory: str) -> Health:
        self._engine.load_weights(WeightFiles.open(Path(directory)))
        return self._engine.health()

    def health(self) -> Health:
        return self._engine.health()

    def node(self) -> str:
        """Id of the node it runs on: samplers and trainer on one node can share memory."""
        return str(ray.get_runtime_context().get_node_id())


@dataclass(slots=True)
class _Desk:
    """What one engine has been asked and has not answered."""

    asked: dict[str, tuple[Request, asyncio.Future[Finished]]] = field(default_factory=dict)
    unsent: list[Request] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    """Ids of requests whose answers nobody waits for any more."""
    held: asyncio.Event | None = None
    """Set once it may be given work again; None: it may."""
    pump: asyncio.Task[None] | None = None


class SamplerPool:
    """Samplers that share the prompts. One that is lost is replaced and given the present weights before any work.

    What it had in hand goes to the engines that are up, or waits for its replacement: a candidate's seed is its own,
    so that it does not matter who samples it.
    """

    def __init__(
        self, config: RunConfig, log_dir: Path, faults: Faults, group: Group | None = None, stage: str = "sampler"
    ) -> None:
        """``group``: its actors (None: those of resources.sampler); ``stage``: what it is called in logs and errors."""
        group = group or config.resources.sampler
        # vLLM on CPU takes its thread count from the environment, before it is imported.
        env = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        if group.gpus == 0:
            env["VLLM_CPU_OMP_THREADS_BIND"] = "auto"  # stages share cores; pinning would fight the scheduler
        remote: Any = ray.remote(SamplerActor)
        options = actor_options(group, env)

        def start(index: int) -> Any:
            log_file = str(log_dir / f"{stage}-{index}.log")
            return remote.options(**options).remote(
                config.model, config.sampling, config.run.seed, group.gpus > 0, log_file
            )

        self._deadlines, self._stage, self._update = config.deadlines, stage, config.weights.update
        self._nodes = [""] * group.actors
        self._crew: Crew[Any] = Crew(stage, group.actors, start, self._catch_up, config.deadlines, faults)
        self._desks = [_Desk() for _ in range(group.actors)]
        self._published = ""  # directory of the weights to serve; empty: the model's own
        self.version = Version(0, 0)

    async def _catch_up(self, index: int, actor: Any) -> None:
        """A fresh engine has the initial weights: it loads the present ones before it is asked for anything."""
        who, seconds = f"{self._stage} {index} (starting)", self._deadlines.start_s
        self._nodes[index] = await remote_call(actor.node.remote(), who=who, seconds=seconds)
        if self._published:
            await remote_call(actor.load.remote(self._published), who=who, seconds=seconds)

    async def ready(self) -> list[str]:
        """Wait for every engine; returns the node each runs on."""
        await self._crew.ready()
        return list(self._nodes)

    async def sample(self, prompts: Sequence[Prompt], plan: SamplePlan) -> AsyncIterator[CandidateGroup]:
        """Yield each prompt's group as soon as its last candidate is finished."""
        groups = [asyncio.ensure_future(self._group(i, prompt, plan)) for i, prompt in enumerate(prompts, plan.first)]
        try:
            for group in asyncio.as_completed(groups):
                yield await group
        finally:
            for task in groups:
                task.cancel()

    async def _group(self, number: int, prompt: Prompt, plan: SamplePlan) -> CandidateGroup:
        requests = [plan.request(prompt, index) for index in range(plan.candidates)]
        finished = await self._ask(number % len(self._desks), requests)
        return CandidateGroup(prompt, tuple(_candidate(prompt, i, s) for i, s in enumerate(finished)))

    async def ask(self, requests: Sequence[Request]) -> list[Finished]:
        """Answers in order, of the engine with the least to do and its present weights; calls may overlap.

        Whoever asks keeps ids unique.
        """
        return await self._ask(min(range(len(self._desks)), key=lambda i: len(self._desks[i].asked)), requests)

    async def _ask(self, engine: int, requests: Sequence[Request]) -> list[Finished]:
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Finished]] = [loop.create_future() for _ in requests]
        self._hand(engine, list(zip(requests, futures, strict=True)))
        try:
            return await asyncio.gather(*futures)
        except asyncio.CancelledError:
            self._withdraw(requests)
            raise

    def _withdraw(self, requests: Sequence[Request]) -> None:
        for desk in self._desks:
            given = [r for r in requests if desk.asked.pop(r.id, None) is not None]
            desk.withdrawn += [r.id for r in given if r not in desk.unsent]
            desk.unsent = [r for r in desk.unsent if r not in given]

    def _hand(self, engine: int, work: Sequence[tuple[Request, asyncio.Future[Finished]]]) -> None:
        desk = self._desks[engine]
        desk.asked |= {request.id: (request, future) for request, future in work}
        desk.unsent += [request for request, _ in work]
        if desk.pump is None or desk.pump.done():
            desk.pump = asyncio.ensure_future(self._pump(engine))

    async def _pump(self, engine: int) -> None:
        """The only one that talks to an engine about work: hand over, poll, give out, until nothing is asked."""
        desk = self._desks[engine]
        await asyncio.sleep(0)  # whatever is asked in the same breath goes in one call
        try:
            while desk.asked or desk.withdrawn:
                try:
                    await self._round(engine, desk)
                except ActorLost:
                    self._rescue(engine)
        except Exception as error:
            work, desk.asked, desk.unsent, desk.withdrawn = list(desk.asked.values()), {}, [], []
            for _, future in work:
                if not future.done():
                    future.set_exception(error)

    async def _round(self, engine: int, desk: _Desk) -> None:
        await self._crew.up(engine)
        if desk.withdrawn:
            ids = tuple(desk.withdrawn)
            await self._crew.call(engine, "abort", lambda a: a.abort.remote(ids), self._deadlines.heartbeat_s)
            desk.withdrawn = desk.withdrawn[len(ids) :]
        if desk.held is not None and len(desk.unsent) == len(desk.asked):
            await desk.held.wait()  # it has nothing to do, and is about to be given other weights
        if desk.unsent and desk.held is None:
            requests, desk.unsent = desk.unsent, []
            await self._crew.call(engine, "submit", lambda a: a.submit.remote(requests), self._deadlines.heartbeat_s)
        poll = self._crew.call(engine, "poll", lambda a: a.poll.remote(_POLL_SECONDS), self._deadlines.heartbeat_s)
        for finished in await poll:
            _, future = desk.asked.pop(finished.request_id, (None, None))
            if future is not None and not future.done():
                future.set_result(finished)
        desk.unsent = [r for r in desk.unsent if r.id in desk.asked]

    def _rescue(self, engine: int) -> None:
        """The engine is lost: what it had in hand goes to those that are up, else to its replacement."""
        desk = self._desks[engine]
        work = [(r, f) for r, f in desk.asked.values() if not f.done()]
        desk.asked, desk.unsent, desk.withdrawn = {}, [], []
        others = [i for i in range(len(self._desks)) if i != engine and self._crew.is_up(i)] or [engine]
        for k, taker in enumerate(others):
            if share := work[k :: len(others)]:
                self._hand(taker, share)

    async def load(self, directory: str, version: Version) -> float:
        """Load published weights into every running engine; returns the seconds it took."""
        started = time.monotonic()
        self._published = directory  # for replacements that come up meanwhile
        await asyncio.gather(*(self._load(i, directory, version) for i in range(len(self._desks))))
        self.version = version
        return time.monotonic() - started

    async def _load(self, engine: int, directory: str, version: Version) -> None:
        desk = self._desks[engine]
        try:
            async with self._between(engine, desk):
                health: Health = await self._crew.call(engine, f"load {version}", lambda a: a.load.remote(directory))
        except ActorLost:
            if any(self._crew.is_up(i) for i in range(len(self._desks))):
                return  # its replacement loads them before it works
            await self._crew.up(engine)
            return
        if health.version != version:
            raise RuntimeError(f"{self._stage} {engine} serves weights {health.version} after loading {version}")

    @asynccontextmanager
    async def _between(self, engine: int, desk: _Desk) -> AsyncIterator[None]:
        """What becomes of answers under way while other weights are loaded (``weights.update``)."""
        if self._update == "in_flight":
            yield
            return
        held = desk.held = asyncio.Event()
        try:
            if self._update == "requeue":
                await self._requeue(engine, desk)
            while sent := [future for request, future in desk.asked.values() if request not in desk.unsent]:
                # Looked at anew now and then: what a lost engine had in hand is not with it any more.
                await asyncio.wait(sent, timeout=_POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.sleep(0)
            yield
        finally:
            desk.held = None
            held.set()

    async def _requeue(self, engine: int, desk: _Desk) -> None:
        """What is being sampled begins anew, with the weights to come; a question is answered by one token."""
        under_way = [r for r, _ in desk.asked.values() if isinstance(r, SampleRequest) and r not in desk.unsent]
        if under_way:
            ids = [r.id for r in under_way]
            desk.unsent = [*under_way, *desk.unsent]
            await self._crew.call(engine, "abort", lambda a: a.abort.remote(ids), self._deadlines.heartbeat_s)

    def close(self) -> None:
        for desk in self._desks:
            if desk.pump:
                desk.pump.cancel()
        self._crew.kill()


def _candidate(prompt: Prompt, index: int, s: Finished) -> Candidate:
    assert isinstance(s, Sampled)  # what was asked for
    return Candidate(
        s.request_id, prompt.id, index, s.token_ids, s.logprobs, s.text, s.finish_reason, s.version_min, s.version_max
    )
