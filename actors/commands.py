"""What trainer workers can be told to do, and what they answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from actors.files import FileSum
from preference.batching import StepSize
from preference.reports import TrainMetrics
from preference.types import Version


@dataclass(frozen=True, slots=True)
class Train:
    """Take optimizer step ``step`` (1-based) on a batch; ``batch[rank]`` refers to that rank's share."""

    step: int
    batch: tuple[Any, ...]  # ray.ObjectRef[RankBatch] per rank
    size: StepSize
    waiting: float  # expected share of the ranks' time lost to unequal cells


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Losses and rewards of a batch, without learning from it."""

    batch: tuple[Any, ...]  # ray.ObjectRef[RankBatch] per rank
    size: StepSize


@dataclass(frozen=True, slots=True)
class Publish:
    """Gather the weights bucket by bucket and write them complete-then-marked into ``directory``."""

    version: Version
    directory: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Save everything training needs to go on after ``step`` into ``directory``, which does not exist yet."""

    step: int
    directory: str


@dataclass(frozen=True, slots=True)
class Stop:
    pass


Command = Train | Evaluate | Publish | Checkpoint | Stop


@dataclass(frozen=True, slots=True)
class TrainDone:
    metrics: TrainMetrics
    seconds: float


@dataclass(frozen=True, slots=True)
class EvaluateDone:
    metrics: TrainMetrics


@dataclass(frozen=True, slots=True)
class PublishDone:
    version: Version
    directory: str
    bytes: int
    gather_seconds: float
    write_seconds: float


@dataclass(frozen=True, slots=True)
class CheckpointDone:
    step: int
    directory: str
    seconds: float
    files: tuple[FileSum, ...]  # of all ranks
    error: str = ""  # why a rank could not write its files; empty where all could


@dataclass(frozen=True, slots=True)
class Stopped:
    pass


Done = TrainDone | EvaluateDone | PublishDone | CheckpointDone | Stopped
