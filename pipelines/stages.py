"""The stages as the loop sees them. Real ones live in ``actors/``; tests pass hand-written fakes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actors.commands import CheckpointDone, PublishDone, TrainDone
from actors.requests import SamplePlan
from preference.batching import PackedRows, PairBatch
from preference.reports import EvalReport, StepReport
from preference.types import CandidateGroup, JudgedGroup, Prompt, Version


class Sampler(Protocol):
    version: Version

    def sample(self, prompts: Sequence[Prompt], plan: SamplePlan) -> AsyncIterator[CandidateGroup]:
        """Yield each prompt's candidates as soon as they are complete, stamped with the serving version."""
        ...

    async def load(self, directory: str, version: Version) -> float:
        """Serve published weights; returns seconds."""
        ...


class Judge(Protocol):
    name: str

    async def judge(self, groups: Sequence[CandidateGroup]) -> list[JudgedGroup]:
        """Judge every group; failures are judgements too, nothing is invented."""
        ...


class Reference(Protocol):
    async def score(self, cells: Sequence[PackedRows]) -> list[NDArray[np.float32]]:
        """Reference log-probs of every cell's targets, in order."""
        ...


class Trainer(Protocol):
    ranks: int

    async def train(self, step: int, batch: PairBatch) -> TrainDone: ...

    async def publish(self, version: Version, directory: Path) -> PublishDone: ...

    async def checkpoint(self, step: int, directory: Path) -> CheckpointDone: ...


class Observer(Protocol):
    """Who watches: progress display and tracking."""

    def stage(self, step: int, name: str, done: int, total: int, tokens: int) -> None: ...

    def step_done(self, report: StepReport) -> None: ...

    def evaluated(self, report: EvalReport) -> None: ...

    def message(self, text: str) -> None: ...
