"""Deliveries of a run's events to a service that may be down: in order, in the background, across restarts.

    journal ──> lane "metrics"    ──┐
            ──> lane "artifacts"  ──┼──> service        delivered.json: how far each lane is
            ──> lane "traces"     ──┘

What waits is the journal itself, so an outage may last as long as the disk. A lane takes an event at a time; one that
fails for a passing reason is tried again with growing pauses, and what comes after it in its lane waits, while other
lanes go on. An event may be sent twice (the process died before it could note the first time): senders see to it that
the second time changes nothing.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.tracking.events import Event, parse

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
Senders = Mapping[type[Any], Callable[[Any], None]]
"""How a lane sends each type of event that it takes."""


@dataclass(frozen=True, slots=True)
class Service:
    """What events are delivered to."""

    name: str
    lanes: Mapping[str, Senders]
    may_pass: Callable[[Exception], bool]
    """Whether another attempt can succeed after this error."""
    describe: Callable[[Exception], str]


@dataclass(slots=True)
class _Lane:
    name: str
    senders: Senders
    offset: int
    pause: float
    """Before the next attempt, should this one fail."""
    due: float = 0.0
    failed: bool = False
    tried: int = 0
    """Which of the drains it has made an attempt for."""


@dataclass(slots=True)
class Cursor:
    """``delivered.json``: bytes of the journal that each lane is through with, and what was refused for good."""

    run: str
    offsets: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, run: str) -> Cursor:
        """Of ``run``; another run's, or none that can be read, is a cursor at the beginning: everything is sent."""
        try:
            found = json.loads(path.read_text())
            cursor = cls(str(found["run"]), {k: int(v) for k, v in found["offsets"].items()}, list(found["refused"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(run)
        return cursor if cursor.run == run else cls(run)

    def write(self, path: Path) -> None:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"run": self.run, "offsets": self.offsets, "refused": self.refused}))
        os.replace(partial, path)


class Outbox:
    """Delivers a journal from a thread of its own. No method raises what the service raised."""

    def __init__(
        self,
        service: Service,
        journal: Path,
        cursor: Path,
        run: str,
        warn: Callable[[str], None],
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        """``run``: whose journal it is to the service; ``cursor``: file that says how far it has got there."""
        self._service, self._journal, self._warn = service, journal, warn
        self._cursor_path, self._cursor = cursor, Cursor.read(cursor, run)
        self._first_pause_s = first_pause_s
        offsets = self._cursor.offsets
        self._lanes = [_Lane(n, s, offsets.get(n, 0), first_pause_s) for n, s in service.lanes.items()]
        self._changed = threading.Condition()
        self._closing = False
        self._draining = 0
        self._news = 0
        self._thread = threading.Thread(target=self._work, name=f"{service.name} outbox", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """The journal has something new."""
        with self._changed:
            self._news += 1
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Try everything that waits once more now, pauses or not; whether all has arrived in the end.

        Returns when that is so, when every lane is through or stuck, or after ``timeout_s``.
        """
        with self._changed:
            self._draining += 1
            mine = self._draining
            self._changed.notify_all()
            self._changed.wait_for(lambda: all(lane.tried >= mine for lane in self._lanes), timeout_s)
        return not self.missing()

    def missing(self) -> list[str]:
        """Keys of what was refused for good and of what still waits."""
        with self._changed:
            refused = list(self._cursor.refused)
            ends = [(lane, lane.offset) for lane in self._lanes]
        return refused + [key for lane, offset in ends for key in self._keys_after(lane, offset)]

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop; what waits stays in the journal for a later attempt."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _keys_after(self, lane: _Lane, offset: int) -> list[str]:
        keys = []
        with self._journal.open("rb") as lines:
            lines.seek(offset)
            for line in lines:
                event = parse(line)
                if type(event) in lane.senders:
                    assert event is not None
                    keys.append(event.key)
        return keys

    # -- the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._deliver_all()
        except Exception as error:  # never silently: what is unsent waits in the journal for the next attempt
            self._warn(f"{self._service.name}: deliveries stopped ({type(error).__name__}: {error})")

    def _deliver_all(self) -> None:
        while not self._closing:
            asked, news = self._draining, self._news
            advanced = [lane for lane in self._lanes if self._may_try(lane, asked) and self._advance(lane)]
            with self._changed:
                for lane in self._lanes:
                    if lane not in advanced:
                        lane.tried = max(lane.tried, asked)
                self._changed.notify_all()
                if advanced or self._closing or (self._draining, self._news) != (asked, news):
                    continue
                self._changed.wait(self._pause())

    def _may_try(self, lane: _Lane, asked: int) -> bool:
        return lane.tried < asked or time.monotonic() >= lane.due

    def _pause(self) -> float | None:
        """Until a lane that failed is due; None: until somebody wakes the thread."""
        due = [lane.due for lane in self._lanes if lane.failed]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _advance(self, lane: _Lane) -> bool:
        """Deliver the lane's next event; False where there is none, or where it has to wait."""
        found = self._next(lane)
        if found is None:
            return False
        event, end = found
        try:
            lane.senders[type(event)](event)
        except Exception as error:
            if self._service.may_pass(error):
                self._put_off(lane, error)
                return False
            self._warn(f"{self._service.name} refused {event.key}: {self._service.describe(error)}")
            self._cursor.refused.append(event.key)
        if lane.failed:
            lane.failed, lane.pause = False, self._first_pause_s
            if not any(other.failed for other in self._lanes):
                self._warn(f"{self._service.name} is back: what waited is being delivered")
        self._note(lane, end)
        return True

    def _next(self, lane: _Lane) -> tuple[Event, int] | None:
        """The lane's next event and where it ends; what is none of its own is passed over."""
        start = lane.offset
        with self._journal.open("rb") as lines:
            lines.seek(start)
            while (line := lines.readline()).endswith(b"\n"):
                event = parse(line)
                if event is not None and type(event) in lane.senders:
                    return event, lines.tell()
                lane.offset = lines.tell()
        return None

    def _put_off(self, lane: _Lane, error: Exception) -> None:
        if not any(other.failed for other in self._lanes):
            failure = f"{self._service.name} failed ({self._service.describe(error)})"
            self._warn(f"{failure}; the run goes on and what is unsent is tried again")
        lane.failed = True
        lane.due = time.monotonic() + lane.pause
        lane.pause = min(2 * lane.pause, LONGEST_PAUSE_S)

    def _note(self, lane: _Lane, end: int) -> None:
        lane.offset = end
        with self._changed:
            self._cursor.offsets = {other.name: other.offset for other in self._lanes}
        try:
            self._cursor.write(self._cursor_path)
        except OSError as error:  # it is sent again after a restart, which changes nothing
            self._warn(f"{self._cursor_path}: {error.strerror}")
