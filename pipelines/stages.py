"""The stages as the loop sees them. Real ones live in ``actors/`` and beside this; tests pass hand-written fakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actors.commands import CheckpointDone, PublishDone, TrainDone
from actors.requests import SamplePlan
from pipelines.timing import Stopwatch
from preference.batching import Batch, Packed
from preference.reports import EvalReport, ProbeMetrics, SampleMetrics, SampleRow, StepReport, TrainMetrics
from preference.types import CandidateGroup, Fate, JudgedGroup, Prompt, Scored, Version


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

    async def judge(self, step: int, group: CandidateGroup) -> JudgedGroup | None:
        """Judge a group; failures are judgements too, nothing is invented. None: people have been asked."""
        ...

    def restore(self, waiting: Iterable[tuple[int, JudgedGroup]]) -> None:
        """Take up what an earlier attempt had asked people about, with the step that asked."""
        ...

    async def settle(self, step: int) -> list[JudgedGroup]:
        """What people have decided after ``step`` waited for them, of this step and of earlier ones."""
        ...

    def waiting(self, step: int) -> list[JudgedGroup]:
        """Groups of ``step`` that people have not decided, with what is known of them."""
        ...

    async def consumed(self, step: int) -> None:
        """The ledger has what ``settle(step)`` returned."""
        ...

    async def score(
        self, groups: Sequence[CandidateGroup], against: Sequence[CandidateGroup] | None = None
    ) -> list[float]:
        """A score of the one answer in each group; nan where the judge failed."""
        ...


class Reference(Protocol):
    @property
    def version(self) -> str:
        """Which reference this is: another one after every ``refresh``."""
        ...

    async def score(self, packed: Packed) -> NDArray[np.float32]:
        """Reference log-probs [N] of ``packed.target``; calls may overlap."""
        ...

    async def refresh(self, directory: str, alpha: float) -> None:
        """pi_ref <- alpha pi + (1 - alpha) pi_ref, pi being the published weights in ``directory``."""
        ...

    async def save(self, directory: str) -> None:
        """Write the present reference's weights, so that a resumed run has them."""
        ...

    async def load(self, directory: str) -> None:
        """Go on with weights that ``save`` wrote; empty: with the initial ones."""
        ...


class Trainer(Protocol):
    ranks: int

    async def train(self, step: int, batch: Batch) -> TrainDone: ...

    async def evaluate(self, batch: Batch) -> TrainMetrics: ...

    async def publish(self, version: Version, directory: Path) -> PublishDone: ...

    async def checkpoint(self, step: int, directory: Path) -> CheckpointDone: ...


class Consumer(Protocol):
    async def load(self, directory: str, version: Version) -> float:
        """Serve published weights; returns seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a step needs to learn: one fate a prompt or record, scored items, and how they came about."""

    fates: Counter[Fate]
    scored: tuple[Scored, ...]
    mismatched: tuple[tuple[NDArray[np.float32], ...], ...]  # reference scores of ``batching.mismatched_examples``
    sample: SampleMetrics | None
    probe: ProbeMetrics | None
    rows: tuple[SampleRow, ...]
    watch: Stopwatch
    judged: tuple[JudgedGroup, ...] = ()  # what the items were made of
    waiting: tuple[JudgedGroup, ...] = ()  # what people have been asked about and have not decided


class Source(Protocol):
    async def prepare(self, step: int, watch: Stopwatch) -> Prepared:
        """Everything before the trainer, for 1-based ``step``."""
        ...

    def served(self, step: int, version: Version) -> None:
        """``step`` is done, and samplers serve ``version``: its weights, or older ones where it trained nothing."""
        ...

    def rewind(self) -> None:
        """The weights are set back: steps that were prepared before will be asked for again."""
        ...


class Evaluator(Protocol):
    async def after(self, step: int, version: Version) -> None:
        """Called after every step; evaluates where it is due and tells the observer."""
        ...


class Observer(Protocol):
    """Who watches: progress display and tracking."""

    def stage(self, step: int, name: str, done: int, total: int, tokens: int) -> None: ...

    def step_done(self, report: StepReport) -> None: ...

    def evaluated(self, report: EvalReport) -> None: ...

    def heldout(self, step: int, metrics: TrainMetrics) -> None:
        """Loss and rewards on held-out items (training from files)."""
        ...

    def message(self, text: str) -> None: ...
