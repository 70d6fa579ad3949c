"""The reference pool: frozen models that score packed cells, with the trainer's own code and dtype."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from actors.imports import lean_imports
from actors.pool import ActorPool, actor_options, remote_call
from actors.quiet import redirect_output
from actors.weights import WeightFiles, WeightWriter
from configs.runs import TrainingConfig
from configs.schema import Batching, Model
from preference.batching import Packed
from preference.logprobs import LogProbModel, model_inputs
from preference.types import Version

_RESTARTS = 3


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
        with torch.no_grad():
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

    def __init__(self, config: TrainingConfig, log_dir: Path) -> None:
        group = config.resources.reference
        # A frozen model comes back as it was; one that had been moved would come back as the wrong reference.
        restarts = _RESTARTS if config.reference.refresh == "fixed" else 0
        remote: Any = ray.remote(ReferenceActor)
        self._start_s, self._call_s = config.deadlines.start_s, config.deadlines.call_s
        self.version = "initial"
        self._actors = [
            remote.options(max_restarts=restarts, max_task_retries=restarts, **actor_options(group)).remote(
                config.model, config.batching, group.threads, group.gpus > 0, str(log_dir / f"reference-{i}.log")
            )
            for i in range(group.actors)
        ]
        self._pool: ActorPool[Any] = ActorPool("reference", self._actors, config.deadlines.call_s)

    async def ready(self) -> None:
        for i, actor in enumerate(self._actors):
            await remote_call(actor.pid.remote(), who=f"reference actor {i} (starting)", seconds=self._start_s)

    async def score(self, packed: Packed) -> NDArray[np.float32]:
        """Reference log-probs [N] of ``packed.target``, on whichever actor is free."""
        logps: NDArray[np.float32] = await self._pool.call(lambda actor: actor.score.remote(packed))
        return logps

    async def refresh(self, directory: str, alpha: float) -> None:
        """Every actor moves its reference towards the published weights in ``directory``, alike."""
        await self._everywhere("refreshing", lambda actor: actor.refresh.remote(directory, alpha))
        self.version = str(WeightFiles.open(Path(directory)).version)

    async def save(self, directory: str) -> None:
        """Write the present reference (the same on every actor) into ``directory``; the initial one is not written."""
        if self.version != "initial":
            ref = self._actors[0].save.remote(directory, Version.parse(self.version))
            await remote_call(ref, who="reference actor 0 (saving)", seconds=self._call_s)

    async def load(self, directory: str) -> None:
        """Go on with a reference that ``save`` wrote."""
        await self.refresh(directory, 1.0)

    async def _everywhere(self, what: str, submit: Callable[[Any], Any]) -> None:
        refs = [submit(actor) for actor in self._actors]
        for i, ref in enumerate(refs):
            await remote_call(ref, who=f"reference actor {i} ({what})", seconds=self._call_s)

    def close(self) -> None:
        self._pool.kill()
