"""What bounds how far sampling may run ahead of training, checked before anything starts.

``preference.admission`` has the arithmetic behind every bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Order = Literal["admitted", "in_time", "finished"]
"""Which prompts make a batch."""


class AdmissionError(ValueError):
    """These rules cannot make progress; the message shows the arithmetic and the fix."""


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """Raises AdmissionError where no step could ever be taken."""

    batch: int
    """Prompts of one step."""
    max_staleness: int
    """Most versions that a prompt's sampling policy may be behind the policy it trains."""
    order: Order = "admitted"
    spare: int = 0
    """Prompts sampled beyond the places there are; only with ``order: finished``."""
    queue: int | None = None
    """Most prompts outstanding (the room of all queues together); none: as many as staleness allows."""
    steps: int | None = None
    """Last step of the run: nothing is sampled for steps after it. None: no end."""
    max_replaced: int | None = None
    """Prompts replaced for one step after which further losses leave their places empty: a policy that only makes ties
    then trains short batches instead of sampling for ever. None: no limit."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("batch", self.batch, 1),
            ("max_staleness", self.max_staleness, 0),
            ("spare", self.spare, 0),
            ("max_replaced", self.max_replaced, 0),
        ):
            if value is not None and value < least:
                raise AdmissionError(f"{name} = {value}: give {least} or more")
        if self.queue is not None and self.queue < self.batch:
            raise AdmissionError(
                f"queue = {self.queue} prompts can never hold a batch of {self.batch}: {self.batch - self.queue} "
                f"places are missing; raise the queue to {self.batch} (to {self.places} for max_staleness = "
                f"{self.max_staleness}: ({self.max_staleness} + 1) x {self.batch}), or lower the batch"
            )
        if self.queue is not None and self.max_staleness and self.reach == 0:
            raise AdmissionError(
                f"max_staleness = {self.max_staleness} with queue = {self.queue} and batch = {self.batch}: running one "
                f"step ahead needs more than {self.batch} prompts outstanding; raise the queue to {self.places} "
                f"(({self.max_staleness} + 1) x {self.batch}), or set max_staleness = 0"
            )
        if self.spare and self.order != "finished":
            raise AdmissionError(
                f"spare = {self.spare} with order = {self.order}: ({self.max_staleness} + 1) x {self.batch} + "
                f"{self.spare} prompts do not fit into {self.max_staleness + 1} steps of {self.batch}, and that order "
                f"drops none; set order = finished, or spare = 0"
            )

    @property
    def places(self) -> int:
        """Prompts that may be outstanding when no step is under way: (max_staleness + 1) x batch + spare."""
        return (self.max_staleness + 1) * self.batch + self.spare

    @property
    def reach(self) -> int:
        """The staleness that the queue leaves room for: at most ``max_staleness``."""
        room = self.places if self.queue is None else min(self.places, self.queue)
        return min(self.max_staleness, -(-room // self.batch) - 1)
