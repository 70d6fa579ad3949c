"""Deliveries to a service that may be down for a while: what could not be delivered waits for the next attempt."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_WAITING = 512  # deliveries kept while the service is down: a table and a batch of metrics an iteration


class Outbox:
    """Delivers in order and never raises. ``temporary`` says of an error whether another attempt can succeed."""

    def __init__(
        self,
        service: str,
        warn: Callable[[str], None],
        temporary: Callable[[Exception], bool],
        describe: Callable[[Exception], str],
    ) -> None:
        self._service, self._warn = service, warn
        self._temporary, self._describe = temporary, describe
        self._queue: deque[tuple[str, Callable[[], None], str]] = deque()
        self._lost: list[str] = []
        self._down = False

    def deliver(self, what: str, send: Callable[[], None], part: str) -> None:
        """Call ``send`` now, or again with later deliveries when ``part`` of the service is down."""
        self._queue.append((what, send, part))
        if len(self._queue) > _WAITING:
            self._lost.append(self._queue.popleft()[0])
        self.flush()

    def flush(self) -> None:
        """Another attempt for everything that is waiting."""
        waiting, failed = len(self._queue), set[str]()
        for _ in range(waiting):
            what, send, part = self._queue.popleft()
            if part in failed:  # the parts fail apart; none is asked again in this call
                self._queue.append((what, send, part))
                continue
            try:
                send()
            except Exception as error:
                if not self._temporary(error):
                    self.lose(what)
                    self._warn(f"{self._service} refused {what}: {self._describe(error)}")
                    continue
                if not self._down:
                    failure = f"{self._service} failed ({self._describe(error)})"
                    self._warn(f"{failure}; the run goes on and what is unsent is tried again")
                self._down = True
                failed.add(part)
                self._queue.append((what, send, part))
        if self._down and not self._queue:
            self._warn(f"{self._service} is back: {waiting} waiting entries delivered")
            self._down = False

    def lose(self, what: str) -> None:
        """Count ``what`` among the things that never arrive."""
        self._lost.append(what)

    def is_empty(self) -> bool:
        return not self._queue

    def missing(self) -> list[str]:
        """What is lost and what still waits."""
        return self._lost + [what for what, _, _ in self._queue]
