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

from actors.faults import Faults
from actors.judges.asking import Asks
from actors.judges.batched import Batched
from actors.judges.errors import JudgeError
from actors.judges.identity import SameModel, Started, model_identity
from actors.judges.prompted import PromptedPool
from actors.judges.questions import Question
from actors.judges.replies import Reply
from actors.judges.verdict_engine import VerdictEngine
from actors.pool import Crew, actor_options
from actors.quiet import redirect_output
from configs.judges import LlmJudge
from configs.schema import Deadlines, Group
from preference.types import JudgeInfo


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
    """A ``Comparer`` or a ``Rater``, by ``judge.mode``. A lost engine is replaced by one like it, and asked again."""

    def __init__(
        self,
        judge: LlmJudge,
        group: Group,
        deadlines: Deadlines,
        log_dir: Path,
        name: str,
        initial_model: str,
        faults: Faults,
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
        asks = Asks(self._questions.labels, self._questions.rationale, self._questions.probe)

        def start(index: int) -> Any:
            log_file = str(log_dir / f"{name}-{index}.log")
            return remote.options(**actor_options(group, env)).remote(judge, model, asks, group.gpus > 0, log_file)

        self._same = SameModel(self.name, model, deadlines.start_s)
        self._crew: Crew[Any] = Crew(f"judge {self.name}", group.actors, start, self._same.ready, deadlines, faults)
        self._judge_info = JudgeInfo(self.name, "")
        # Neighbours go to an engine together: they share prefixes.
        self._batched: Batched[Sequence[Question], list[Reply]] = Batched(
            self._crew, lambda actor, asked: actor.ask.remote(asked)
        )

    async def ready(self) -> None:
        """Wait for every engine. Raises JudgeError where the model cannot be a judge or differs between nodes."""
        await self._crew.ready()
        self._judge_info = JudgeInfo(self.name, self._questions.definition(self._same.identity))

    def _info(self, replies: Sequence[Reply]) -> JudgeInfo:
        return self._judge_info

    async def _ask(self, questions: Sequence[Question]) -> list[Reply]:
        return await self._batched.ask(questions)

    def close(self) -> None:
        self._batched.close()
        self._crew.kill()
