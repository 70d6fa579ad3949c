"""The reference pool: frozen models that score packed cells, with the trainer's own code and dtype."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from actors.pool import ActorPool, actor_options, remote_call
from actors.quiet import redirect_output
from configs.schema import Batching, Model, RunConfig
from preference.batching import PackedRows
from preference.logprobs import LogProbModel, model_inputs


class ReferenceActor:
    """One frozen copy of the reference policy."""

    def __init__(self, model: Model, batching: Batching, threads: int, on_gpu: bool, log_file: str) -> None:
        redirect_output(Path(log_file))
        from transformers import AutoModelForCausalLM

        if not on_gpu:
            torch.set_num_threads(threads)
        self._device = torch.device("cuda" if on_gpu else "cpu")
        lm = AutoModelForCausalLM.from_pretrained(model.path, dtype=getattr(torch, model.dtype))
        self._model = LogProbModel(lm.to(self._device).eval().requires_grad_(False), batching.logprob_chunk)

    def score(self, rows: PackedRows) -> NDArray[np.float32]:
        """Reference log-probs [N] of ``rows.target``, nats."""
        with torch.no_grad():
            logps: torch.Tensor = self._model(**model_inputs(rows, self._model.dtype, self._device))
        scored: NDArray[np.float32] = logps.float().cpu().numpy()
        return scored

    def ready(self) -> bool:
        return True


class ReferencePool:
    """Scores cells on as many actors as there are, in any order, answers in the order asked."""

    def __init__(self, config: RunConfig, log_dir: Path) -> None:
        group = config.resources.reference
        remote: Any = ray.remote(ReferenceActor)
        self._start_s = config.deadlines.start_s
        self._actors = [
            remote.options(**actor_options(group)).remote(
                config.model, config.batching, group.threads, group.gpus > 0, str(log_dir / f"reference-{i}.log")
            )
            for i in range(group.actors)
        ]
        self._pool: ActorPool[Any] = ActorPool("reference", self._actors, config.deadlines.call_s)

    async def ready(self) -> None:
        for i, actor in enumerate(self._actors):
            await remote_call(actor.ready.remote(), who=f"reference actor {i} (starting)", seconds=self._start_s)

    async def score(self, cells: Sequence[PackedRows]) -> list[NDArray[np.float32]]:
        async def one(cell: PackedRows) -> NDArray[np.float32]:
            logps: NDArray[np.float32] = await self._pool.call(lambda actor: actor.score.remote(cell))
            return logps

        return list(await asyncio.gather(*(one(cell) for cell in cells)))

    def close(self) -> None:
        self._pool.kill()
