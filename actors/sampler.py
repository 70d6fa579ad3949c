"""The sampler pool: vLLM engines in Ray actors that answer prompts with versioned, seeded candidates.

    sample() ──submit──> engine i      one pump a sampler: poll, stamp, hand out
                <──poll── finished     a prompt's group is complete -> yielded at once

Prompt k of a batch always goes to engine k mod n and every candidate has its own seed, so that a batch is a function
of (seed, step, weights) alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.engine import InProcessEngine
from actors.pool import actor_options, remote_call
from actors.quiet import redirect_output
from actors.requests import Health, Sampled, SamplePlan, SampleRequest
from actors.weights import WeightFiles
from configs.runs import RunConfig
from configs.schema import Model, Sampling
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

    def submit(self, requests: Sequence[SampleRequest]) -> None:
        self._engine.submit(requests)

    def poll(self, seconds: float) -> list[Sampled]:
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


class SamplerPool:
    def __init__(self, config: RunConfig, log_dir: Path) -> None:
        group = config.resources.sampler
        # vLLM on CPU takes its thread count from the environment, before it is imported.
        env = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        if group.gpus == 0:
            env["VLLM_CPU_OMP_THREADS_BIND"] = "auto"  # stages share cores; pinning would fight the scheduler
        remote: Any = ray.remote(SamplerActor)
        options = actor_options(group, env)
        self._start_s, self._call_s = config.deadlines.start_s, config.deadlines.call_s
        self._actors = [
            remote.options(**options).remote(
                config.model, config.sampling, config.run.seed, group.gpus > 0, str(log_dir / f"sampler-{i}.log")
            )
            for i in range(group.actors)
        ]
        self._waiting: list[dict[str, asyncio.Future[Sampled]]] = [{} for _ in self._actors]
        self._pumps: list[asyncio.Task[None] | None] = [None for _ in self._actors]
        self.version = Version(0, 0)

    async def ready(self) -> list[str]:
        """Wait for every engine; returns the node each runs on."""
        return [
            await remote_call(a.node.remote(), who=f"sampler {i} (starting)", seconds=self._start_s)
            for i, a in enumerate(self._actors)
        ]

    async def sample(self, prompts: Sequence[Prompt], plan: SamplePlan) -> AsyncIterator[CandidateGroup]:
        """Yield each prompt's group as soon as its last candidate is finished."""
        groups = [asyncio.ensure_future(self._group(i, prompt, plan)) for i, prompt in enumerate(prompts)]
        try:
            for group in asyncio.as_completed(groups):
                yield await group
        finally:
            for task in groups:
                task.cancel()

    async def _group(self, number: int, prompt: Prompt, plan: SamplePlan) -> CandidateGroup:
        engine = number % len(self._actors)
        requests = [plan.request(prompt, index) for index in range(plan.candidates)]
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in requests]
        self._waiting[engine].update({r.id: f for r, f in zip(requests, futures, strict=True)})
        await self._call(engine, "submit", self._actors[engine].submit.remote(requests))
        self._ensure_pump(engine)
        finished = await asyncio.gather(*futures)
        return CandidateGroup(prompt, tuple(_candidate(prompt, i, s) for i, s in enumerate(finished)))

    def _ensure_pump(self, engine: int) -> None:
        pump = self._pumps[engine]
        if pump is None or pump.done():
            self._pumps[engine] = asyncio.ensure_future(self._pump(engine))

    async def _pump(self, engine: int) -> None:
        waiting = self._waiting[engine]
        try:
            while waiting:
                ref = self._actors[engine].poll.remote(_POLL_SECONDS)
                for sampled in await self._call(engine, "poll", ref):
                    future = waiting.pop(sampled.request_id)
                    if not future.done():
                        future.set_result(sampled)
        except Exception as error:
            for future in waiting.values():
                if not future.done():
                    future.set_exception(error)
            waiting.clear()

    async def load(self, directory: str, version: Version) -> float:
        """Load published weights into every running engine; returns the seconds it took."""
        started = time.monotonic()
        refs = [a.load.remote(directory) for a in self._actors]
        for i, ref in enumerate(refs):
            health: Health = await self._call(i, f"load {version}", ref)
            if health.version != version:
                raise RuntimeError(f"sampler {i} serves weights {health.version} after loading {version}")
        self.version = version
        return time.monotonic() - started

    async def _call(self, engine: int, what: str, ref: Any) -> Any:
        return await remote_call(ref, who=f"sampler {engine} ({what})", seconds=self._call_s)

    def close(self) -> None:
        for pump in self._pumps:
            if pump:
                pump.cancel()
        for actor in self._actors:
            ray.kill(actor, no_restart=True)


def _candidate(prompt: Prompt, index: int, s: Sampled) -> Candidate:
    return Candidate(
        s.request_id, prompt.id, index, s.token_ids, s.logprobs, s.text, s.finish_reason, s.version_min, s.version_max
    )
