"""Judges that rate by models of their own: actors that hold a frozen model, and the pool of them."""

from __future__ import annotations

import asyncio
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray
import torch

from actors.faults import Faults
from actors.judges.batched import Batched
from actors.judges.errors import JudgeError
from actors.judges.identity import SameModel, Started
from actors.pool import Crew, actor_options
from actors.quiet import redirect_output
from configs.judges import ImplicitJudge, RewardModelJudge
from configs.schema import Deadlines, Group
from preference.types import CandidateGroup, JudgeFailure, JudgeInfo, Outcome, Rating, Response

J = TypeVar("J", bound=RewardModelJudge | ImplicitJudge)
Value = float | str
"""A response's score, or why it has none."""


class RatingActor(ABC, Generic[J]):
    """One copy of a judge's models."""

    def __init__(self, judge: J, threads: int, on_gpu: bool, log_file: str) -> None:
        redirect_output(Path(log_file))
        if not on_gpu:
            torch.set_num_threads(threads)
        self._judge = judge
        try:
            self._started = Started(os.getpid(), self._load(torch.device("cuda" if on_gpu else "cpu")))
        except JudgeError as error:  # told by ``started``: what a constructor raises comes with Ray's tracebacks
            self._started = Started(os.getpid(), "", str(error))
        self._info = JudgeInfo(Path(judge.model).name, self._started.identity)

    @abstractmethod
    def _load(self, device: torch.device) -> str:
        """Load what it takes to judge; returns the hash of what defines the scores. Raises JudgeError."""

    @abstractmethod
    def _values(self, groups: Sequence[CandidateGroup]) -> list[list[Value]]:
        """For each group, one value a candidate, in order."""

    def started(self) -> Started:
        return self._started

    def rate(self, groups: Sequence[CandidateGroup]) -> list[list[Rating | JudgeFailure]]:
        """For each group, one result a candidate, in order."""
        began = time.monotonic()
        values = self._values(groups)
        seconds = time.monotonic() - began
        return [
            [self._result(c, v, seconds) for c, v in zip(group.candidates, found, strict=True)]
            for group, found in zip(groups, values, strict=True)
        ]

    def _result(self, response: Response, value: Value, seconds: float) -> Rating | JudgeFailure:
        if isinstance(value, float) and not math.isfinite(value):
            value = f"the score is {value}: broken weights, or overflow in judge.dtype = {self._judge.dtype}"
        if isinstance(value, str):
            return JudgeFailure((response.id,), Outcome.FAILED, value, self._info, seconds)
        return Rating(response.id, value, self._info, seconds=seconds)


class RatingPool:
    """A ``Rater``. Its models are frozen: an actor that is lost is replaced by one like it, and asked again."""

    def __init__(
        self,
        actor: type[RatingActor[J]],
        judge: J,
        group: Group,
        deadlines: Deadlines,
        log_dir: Path,
        name: str,
        faults: Faults,
    ) -> None:
        self.name = Path(judge.model).name
        remote: Any = ray.remote(actor)

        def start(index: int) -> Any:
            log_file = str(log_dir / f"{name}-{index}.log")
            return remote.options(**actor_options(group)).remote(judge, group.threads, group.gpus > 0, log_file)

        same = SameModel(self.name, judge.model, deadlines.start_s)
        self._crew: Crew[Any] = Crew(f"judge {self.name}", group.actors, start, same.ready, deadlines, faults)
        self._batched: Batched[CandidateGroup, list[Rating | JudgeFailure]] = Batched(
            self._crew, lambda actor, groups: actor.rate.remote(groups)
        )

    async def ready(self) -> None:
        """Wait for every actor. Raises JudgeError where the model cannot be a judge or differs between nodes."""
        await self._crew.ready()

    async def rate(self, groups: Sequence[CandidateGroup]) -> list[Rating | JudgeFailure]:
        rated = await asyncio.gather(*(self._batched.ask(group) for group in groups))
        return [r for ratings in rated for r in ratings]

    def close(self) -> None:
        self._batched.close()
        self._crew.kill()
