"""The reference pool: frozen models that score packed cells, with the trainer's own code and dtype."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from actors.faults import ActorLost, Faults
from actors.imports import lean_imports
from actors.pool import ActorPool, Crew, actor_options, remote_call
from actors.quiet import redirect_output
from actors.weights import WeightFiles, WeightWriter
from configs.runs import TrainingConfig
from configs.schema import Batching, Model
from preference.batching import Packed
from preference.logprobs import LogProbModel, model_inputs
from preference.types import Version


class ReferenceActor:
    """One frozen copy of the reference policy."""

    def __init__(self, model: Model, batching: Batching, threads: int, on_gpu: bool, log_file: str) -> None:
        redirect_output(Path(log_file))
        with lean_imports():
            from transformers import AutoModelForCausalLM

        if not on_gpu:
            torch.set_num_threads(threads)
        self._device = torch.device("cuda" if on_gpu else "cpu")
        lm = AutoModelForCausalLM.from_pretrained(model.path, dtype=getattr(torch, model.dtype))
        self._exact: dict[str, torch.Tensor] = {}  # fp32 copies, once the reference is a moving average
        self._model = LogProbModel(lm.to(self._device).eval().requires_grad_(False), batching.logprob_chunk)

    def score(self, packed: Packed) -> NDArray[np.float32]:
        """Reference log-probs [N] of ``packed.target``, nats."""
        with torch.inference_mode():
            logps, _ = self._model(**model_inputs(packed, self._device))
        scored: NDArray[np.float32] = logps.float().cpu().numpy()
        return scored

    def refresh(self, directory: str, alpha: float) -> None:
        """pi_ref <- alpha pi + (1 - alpha) pi_ref, in fp32 so that many small moves are not rounded away."""
        parameters = dict(self._model.lm.named_parameters())
        with torch.no_grad():
            for name, tensor in WeightFiles.open(Path(directory)):
                parameter = parameters[name]
                exact = self._exact.get(name, parameter.float())
                exact = exact.lerp(tensor.to(exact), alpha) if alpha < 1 else tensor.to(exact)
                parameter.copy_(exact)
                if parameter.dtype != torch.float32 and (alpha < 1 or tensor.dtype == torch.float32):
                    self._exact[name] = exact

    def save(self, directory: str, version: Version) -> None:
        writer = WeightWriter(Path(directory), version)
        writer.add({n: self._exact.get(n, p).detach().cpu() for n, p in self._model.lm.named_parameters()})
        writer.finish()

    def pid(self) -> int:
        """The process it runs in; answering means that it is up."""
        return os.getpid()


class ReferencePool:
    """Scores cells on as many actors as there are, in any order, answers in the order asked."""

    def __init__(self, config: TrainingConfig, run_dir: Path, log_dir: Path, faults: Faults) -> None:
        """``run_dir`` is where a moved reference is written down, for actors that come later."""
        group = config.resources.reference
        remote: Any = ray.remote(ReferenceActor)

        def start(index: int) -> Any:
            log_file = str(log_dir / f"reference-{index}.log")
            return remote.options(**actor_options(group)).remote(
                config.model, config.batching, group.threads, group.gpus > 0, log_file
            )

        self.version = "initial"
        self._moved: Path | None = None  # the present reference, where it is not the initial one
        self._kept = run_dir / "reference"
        self._start_s = config.deadlines.start_s
        self._crew: Crew[Any] = Crew("reference", group.actors, start, self._catch_up, config.deadlines, faults)
        self._pool = ActorPool(self._crew, ahead=1)

    async def _catch_up(self, index: int, actor: Any) -> None:
        """A fresh actor has the initial reference; one that comes later needs the present one."""
        who = f"reference actor {index} (starting)"
        await remote_call(actor.pid.remote(), who=who, seconds=self._start_s)
        if self._moved is not None:
            await remote_call(actor.refresh.remote(str(self._moved), 1.0), who=who, seconds=self._start_s)

    async def ready(self) -> None:
        await self._crew.ready()

    async def score(self, packed: Packed) -> NDArray[np.float32]:
        """Reference log-probs [N] of ``packed.target``, on whichever actor is free."""
        logps: NDArray[np.float32] = await self._pool.call("score", lambda actor: actor.score.remote(packed))
        return logps

    async def refresh(self, directory: str, alpha: float) -> None:
        """Every actor moves its reference towards the published weights in ``directory``, alike.

        One moves and writes the result down, the others read it: so does whoever comes later.
        """
        version = WeightFiles.open(Path(directory)).version
        moved = self._kept / str(version)
        while True:
            try:
                await self._crew.call(0, "refresh", lambda actor: actor.refresh.remote(directory, alpha))
                await self._crew.call(0, "save", lambda actor: actor.save.remote(str(moved), version))
                break
            except ActorLost:  # its replacement begins with the reference before this one
                continue
        await self._adopt(moved, str(version), first=1)

    async def save(self, directory: str) -> None:
        """Write the present reference into ``directory``; the initial one is not written."""
        if self._moved is not None:
            await asyncio.to_thread(shutil.copytree, self._moved, directory, dirs_exist_ok=True)

    async def load(self, directory: str) -> None:
        """Go on with a reference that ``save`` wrote; empty: with the initial one."""
        if not directory:
            if self._moved is not None:
                self._moved, self.version = None, "initial"
                await self._crew.renew()
            return
        version = str(WeightFiles.open(Path(directory)).version)
        moved = self._kept / version
        await asyncio.to_thread(shutil.copytree, directory, moved, dirs_exist_ok=True)
        await self._adopt(moved, version, first=0)

    async def _adopt(self, moved: Path, version: str, first: int) -> None:
        """Actors from ``first`` on read the reference in ``moved``; the one before it is not needed any more."""
        before, self._moved, self.version = self._moved, moved, version

        async def read(index: int) -> None:
            # One that is lost meanwhile reads it when it comes up.
            with suppress(ActorLost):
                await self._crew.call(index, "refresh", lambda actor: actor.refresh.remote(str(moved), 1.0))

        await asyncio.gather(*(read(i) for i in range(first, len(self._crew))))
        if before is not None and before != moved:
            shutil.rmtree(before, ignore_errors=True)

    def close(self) -> None:
        self._pool.kill()
