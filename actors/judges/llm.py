"""LLM judge: a chat model on vLLM in a pool of its own.

compare() ──questions of both orders──> waiting ──as many as wait──> idle engine (one batch, shared prefixes)
          <─────────verdicts──────────  replies <──probabilities of the allowed answers──
"""

from __future__ import annotations

import asyncio
import math
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from actors.judges.errors import JudgeError
from actors.judges.prompted import PromptedPool
from actors.judges.questions import Question
from actors.judges.replies import Reply
from actors.judges.verdict_engine import Asks, Started, VerdictEngine, model_identity
from actors.pool import actor_options, remote_call
from actors.quiet import redirect_output
from configs.judges import LlmJudge
from configs.schema import Deadlines, Group
from preference.types import JudgeInfo

_BATCH = 64  # items of one call to an engine: enough to fill it, few enough for its deadline
_RESTARTS = 3


class LlmJudgeActor:
    """One engine, in the actor's main thread."""

    def __init__(self, judge: LlmJudge, model: str, asks: Asks, on_gpu: bool, log_file: str) -> None:
        redirect_output(Path(log_file))
        try:
            self._engine = VerdictEngine(judge, model, asks, on_gpu=on_gpu)
            self._started = Started(os.getpid(), model_identity(model))
        except JudgeError as error:  # told by ``started``: what a constructor raises comes with Ray's tracebacks
            self._started = Started(os.getpid(), "", str(error))

    def started(self) -> Started:
        return self._started

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        return self._engine.ask(questions)


class LlmJudgePool(PromptedPool):
    """A ``Comparer`` or a ``Rater``, by ``judge.mode``. A frozen model keeps nothing: a killed actor comes back."""

    def __init__(
        self, judge: LlmJudge, group: Group, deadlines: Deadlines, log_dir: Path, name: str, initial_model: str
    ) -> None:
        """``initial_model`` is the directory of the model that training began with (``judge.model: initial``)."""
        if judge.model == "policy":
            raise JudgeError("judge.model = policy is judged by the samplers' engines, not by a pool of its own")
        model = initial_model if judge.model == "initial" else judge.model
        super().__init__(judge, Path(model).name)
        env = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        if group.gpus == 0:
            env["VLLM_CPU_OMP_THREADS_BIND"] = "auto"  # as the samplers: stages share cores
        remote: Any = ray.remote(LlmJudgeActor)
        options = {"max_restarts": _RESTARTS, "max_task_retries": _RESTARTS, **actor_options(group, env)}
        asks = Asks(self._questions.labels, self._questions.rationale, self._questions.probe)
        self._actors = [
            remote.options(**options).remote(judge, model, asks, group.gpus > 0, str(log_dir / f"{name}-{i}.log"))
            for i in range(group.actors)
        ]
        self._model, self._deadlines = model, deadlines
        self._judge_info = JudgeInfo(self.name, "")
        self._waiting: deque[tuple[Sequence[Question], asyncio.Future[list[Reply]]]] = deque()
        self._idle = list(range(group.actors))
        self._running: set[asyncio.Task[None]] = set()

    async def ready(self) -> None:
        """Wait for every engine. Raises JudgeError where the model cannot be a judge or differs between nodes."""
        identities = set()
        for i, actor in enumerate(self._actors):
            who = f"judge {self.name} actor {i} (starting)"
            started: Started = await remote_call(actor.started.remote(), who=who, seconds=self._deadlines.start_s)
            if started.refusal:
                raise JudgeError(started.refusal)
            identities.add(started.identity)
        if len(identities) > 1:
            raise JudgeError(f"judge.model {self._model} is not the same model on every node: copy it anew to all")
        self._judge_info = JudgeInfo(self.name, self._questions.definition(*identities))

    def _info(self, *, certain: bool) -> JudgeInfo:
        return self._judge_info

    async def _ask(self, questions: Sequence[Question]) -> list[Reply]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Reply]] = loop.create_future()
        self._waiting.append((questions, future))
        loop.call_soon(self._assign)  # after whatever is asked in the same breath
        return await future

    def _assign(self) -> None:
        """Give what waits to idle engines, neighbours together: they share prefixes."""
        while self._waiting and self._idle:
            share = min(_BATCH, math.ceil(len(self._waiting) / len(self._idle)))
            batch = [self._waiting.popleft() for _ in range(share)]
            task = asyncio.create_task(self._run(self._idle.pop(), batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, index: int, batch: Sequence[tuple[Sequence[Question], asyncio.Future[list[Reply]]]]) -> None:
        questions = [q for asked, _ in batch for q in asked]
        try:
            replies = iter(
                await remote_call(
                    self._actors[index].ask.remote(questions),
                    who=f"judge {self.name} actor {index}",
                    seconds=self._deadlines.call_s,
                )
            )
            for asked, future in batch:
                own = [next(replies) for _ in asked]
                if not future.done():
                    future.set_result(own)
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        finally:
            self._idle.append(index)
            self._assign()

    def close(self) -> None:
        for task in self._running:
            task.cancel()
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
