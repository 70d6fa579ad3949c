"""What breaks, by kind: an actor that is lost can be replaced, what an actor raises is a bug or bad data and is not.

Replacements are budgeted: a stage whose actors are lost again and again ends the run with the last cause.
"""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from configs.schema import Recovery


class StageFailed(RuntimeError):
    """A stage cannot go on. The message names stage, actor and cause."""


class ActorLost(StageFailed):
    """An actor or its node died, or it did not answer within its deadline: another one can do its work."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An actor that was lost and replaced."""

    stage: str
    cause: str
    number: int  # of this stage's faults in this attempt, from 1


_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 300


def in_short(error: Exception) -> str:
    """One line of a loss: Ray's messages are pages of which a line says what happened."""
    lines = [line.strip() for line in _ANSI.sub("", str(error)).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    telling = [line for line in lines if line.startswith(("The actor is dead because", "The node ", "Worker exit"))]
    return (telling or lines[-1:])[0][:_LONGEST]


class Faults:
    """The faults of an attempt, and how many a stage may have."""

    def __init__(self, recovery: Recovery, tell: Callable[[Fault], None] = lambda fault: None) -> None:
        """``tell`` hears of every fault that is survived."""
        self._recovery, self._tell = recovery, tell
        self._recent: dict[str, deque[float]] = {}
        self.counts: Counter[str] = Counter()

    def survive(self, stage: str, error: ActorLost) -> None:
        """Count a loss. Raises StageFailed where ``stage`` has lost more than ``recovery.retries`` in its window."""
        recent = self._recent.setdefault(stage, deque())
        now = time.monotonic()
        while recent and now - recent[0] > self._recovery.window_s:
            recent.popleft()
        if len(recent) >= self._recovery.retries:
            raise StageFailed(
                f"{error}; the {stage} stage has used up its {self._recovery.retries} retries "
                f"(recovery.retries) within {self._recovery.window_s:.0f} s (recovery.window_s)"
            ) from error
        recent.append(now)
        self.counts[stage] += 1
        self._tell(Fault(stage, str(error), self.counts[stage]))
