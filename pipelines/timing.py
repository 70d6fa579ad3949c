"""Where an iteration's time goes."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from preference.reports import StageTime

T = TypeVar("T")


@dataclass(slots=True)
class _Span:
    seconds: float = 0.0
    tokens: int = 0
    began: float = math.inf
    ended: float = -math.inf


class Stopwatch:
    """Adds up seconds and tokens a stage; stages may overlap, each counts its own wall time."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._epoch = time.time() - self._started  # one clock reading: bars of a timeline never run backwards
        self._spans: dict[str, _Span] = {}

    @contextmanager
    def stage(self, name: str, tokens: int = 0) -> Iterator[_Span]:
        """Time the block; the caller may still set ``tokens`` on what it is given."""
        span = _Span(0.0, tokens)
        started = time.monotonic()
        try:
            yield span
        finally:
            ended = time.monotonic()
            total = self._spans.setdefault(name, _Span())
            total.seconds += ended - started
            total.tokens += span.tokens
            total.began = min(total.began, self._epoch + started)
            total.ended = max(total.ended, self._epoch + ended)

    async def timed(self, name: str, work: Awaitable[T]) -> T:
        with self.stage(name):
            return await work

    def stages(self) -> tuple[StageTime, ...]:
        return tuple(StageTime(name, s.seconds, s.tokens, s.began, s.ended) for name, s in self._spans.items())

    def elapsed(self) -> float:
        return time.monotonic() - self._started
