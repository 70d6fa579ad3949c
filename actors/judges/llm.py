"""LLM judge: a chat model on vLLM in a pool of its own.

compare() ──questions of both orders──> waiting ──as many as wait──> idle engine (one batch, shared prefixes)
          <─────────verdicts──────────  replies <──probabilities of the allowed answers──
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from actors.judges.asking import Asks
from actors.judges.batched import Batched
from actors.judges.errors import JudgeError
from actors.judges.identity import Started, common_identity, model_identity
from actors.judges.prompted import PromptedPool
from actors.judges.questions import Question
from actors.judges.replies import Reply
from actors.judges.verdict_engine import VerdictEngine
from actors.pool import actor_options
from actors.quiet import redirect_output
from configs.judges import LlmJudge
from configs.schema import Deadlines, Group
from preference.types import JudgeInfo

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

    def ask(self, asked: Sequence[Sequence[Question]]) -> list[list[Reply]]:
        """Replies to the questions of each match or response, all of them in one batch."""
        replies = iter(self._engine.ask([q for questions in asked for q in questions]))
        return [[next(replies) for _ in questions] for questions in asked]


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
        # Neighbours go to an engine together: they share prefixes.
        self._batched: Batched[Sequence[Question], list[Reply]] = Batched(
            f"judge {self.name}", self._actors, lambda actor, asked: actor.ask.remote(asked), deadlines.call_s
        )

    async def ready(self) -> None:
        """Wait for every engine. Raises JudgeError where the model cannot be a judge or differs between nodes."""
        identity = await common_identity(self.name, self._model, self._actors, self._deadlines.start_s)
        self._judge_info = JudgeInfo(self.name, self._questions.definition(identity))

    def _info(self, replies: Sequence[Reply]) -> JudgeInfo:
        return self._judge_info

    async def _ask(self, questions: Sequence[Question]) -> list[Reply]:
        return await self._batched.ask(questions)

    def close(self) -> None:
        self._batched.close()
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
