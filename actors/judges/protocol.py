"""What a judge is: it rates responses one by one, or it compares two of them. Either may fail; none invents."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from preference.panel import Opinion
from preference.types import CandidateGroup, JudgeFailure, Match, Rating, Verdict


class JudgePool(Protocol):
    """What every judge has, whatever it judges by. Actors start when the pool is made; ``ready`` waits for them."""

    name: str

    async def ready(self) -> None: ...

    def close(self) -> None: ...


class Rater(JudgePool, Protocol):
    """A pointwise judge."""

    async def rate(self, groups: Sequence[CandidateGroup]) -> list[Rating | JudgeFailure]:
        """For every candidate of every group a rating or its part in a failure; calls may overlap."""
        ...


class Comparer(JudgePool, Protocol):
    """A pairwise judge."""

    async def compare(self, matches: Sequence[Match]) -> list[Verdict | JudgeFailure]:
        """One result a match, in order; ``Verdict.first_id`` is the match's first whatever was presented first.

        A judge that has an order of presentation asks in both and averages P(first is better) before it decides.
        Calls may overlap.
        """
        ...


class Crowd(JudgePool, Protocol):
    """People: what they are asked they answer later, if at all."""

    async def submit(self, step: int, matches: Sequence[Match]) -> None:
        """Ask people about these matches; what was submitted before is not asked again."""
        ...


@dataclass(frozen=True, slots=True)
class Ruling:
    """What came of asking about a match."""

    stands: Opinion | None
    """None: people have been asked, and the answer comes when it comes."""
    overruled: tuple[Opinion, ...] = ()


class Arbiter(ABC):
    """A judge, or several together, asked about the matches of a step."""

    def __init__(self, name: str, *pools: JudgePool) -> None:
        self.name, self._pools = name, pools

    async def ready(self) -> None:
        await asyncio.gather(*(pool.ready() for pool in self._pools))

    def close(self) -> None:
        for pool in self._pools:
            pool.close()

    @abstractmethod
    async def rule(self, step: int, matches: Sequence[Match]) -> list[Ruling]:
        """One ruling a match, in order; calls may overlap."""
