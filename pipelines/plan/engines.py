"""Continuous batching, simulated: an engine decodes all it has at one speed, which falls as it has more.

A prompt is one unit: it takes as long as the longest of its candidates, and weighs as many sequences as decode on
average meanwhile (tokens of all / tokens of the longest). Between two changes every unit advances by the same number of
tokens, so an engine needs one clock, its tokens since the start, and the next unit to end is the first of a heap.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

from pipelines.plan.workload import Lengths

TokenSeconds = Callable[[float], float]
"""Seconds between two tokens, by the number of sequences that decode."""


class Engine:
    __slots__ = ("busy", "down_until", "generation", "load", "queue", "running", "since", "tokens")

    def __init__(self) -> None:
        self.tokens = 0.0  # that every sequence has gone through since the start
        self.since = 0.0  # when ``tokens`` was right; in the future while it is paused
        self.load = 0.0  # sequences
        self.running: list[tuple[float, int, float]] = []  # heap of (tokens at its end, ticket, weight)
        self.queue: deque[int] = deque()  # tickets that the KV cache has no room for
        self.generation = 0  # of its scheduled event: older ones are void
        self.busy = 0.0  # seconds
        self.down_until = 0.0  # it died and restarts until then

    def advance(self, now: float, token_s: TokenSeconds) -> None:
        """Bring ``tokens`` up to ``now``."""
        if now <= self.since:
            return
        if self.running:
            self.tokens += (now - self.since) / token_s(self.load)
            self.busy += now - self.since
        self.since = now

    def pause(self, now: float, seconds: float, token_s: TokenSeconds) -> None:
        """Nothing decodes for ``seconds``: weights are loaded, or it restarts."""
        self.advance(now, token_s)
        self.since = max(self.since, now) + seconds

    def begin(self, ticket: int, tokens: float, weight: float) -> None:
        heapq.heappush(self.running, (self.tokens + tokens, ticket, weight))
        self.load += weight

    def ended(self) -> list[int]:
        """Tickets that are complete now."""
        done = []
        while self.running and self.running[0][0] <= self.tokens + 1e-6:
            _, ticket, weight = heapq.heappop(self.running)
            self.load -= weight
            done.append(ticket)
        if not self.running:
            self.load = 0.0
        return done

    def next_end(self, now: float, token_s: TokenSeconds) -> float | None:
        """When the next unit is complete if nothing changes."""
        if not self.running:
            return None
        begins, left = (now if now > self.since else self.since), self.running[0][0] - self.tokens
        return begins + left * token_s(self.load) if left > 0 else begins

    def forget(self, tickets: set[int]) -> None:
        """Abort what it has of ``tickets``."""
        kept = [unit for unit in self.running if unit[1] not in tickets]
        if len(kept) < len(self.running):
            self.load = sum(weight for _, _, weight in kept)
            self.running = kept
            heapq.heapify(self.running)
        if self.queue:
            self.queue = deque(t for t in self.queue if t not in tickets)

    def drop_all(self) -> list[int]:
        """It died: everything it had."""
        lost = [ticket for _, ticket, _ in self.running] + list(self.queue)
        self.running, self.load = [], 0.0
        self.queue.clear()
        return lost


class Draws:
    """Prompts' lengths, drawn in blocks: (tokens of the longest candidate, sequences on average)."""

    def __init__(
        self, lengths: Lengths, candidates: int, random: np.random.Generator, given: Iterator[float] | None = None
    ) -> None:
        """``given``: tokens of every prompt's candidates, all alike, instead of draws."""
        self._lengths, self._candidates, self._random, self._given = lengths, candidates, random, given
        self._block: list[tuple[float, float]] = []

    def next(self) -> tuple[float, float]:
        if self._given is not None:
            return next(self._given), float(self._candidates)
        if not self._block:
            self._block = self._draw(8192)
        return self._block.pop()

    def _draw(self, number: int) -> list[tuple[float, float]]:
        lengths = self._lengths
        if not lengths.spread:
            return [(min(lengths.mean, float(lengths.cap)), float(self._candidates))] * number
        drawn = self._random.lognormal(lengths.location, lengths.spread, (number, self._candidates))
        drawn = np.minimum(np.maximum(drawn, 1.0), lengths.cap)
        longest = drawn.max(1)
        return list(zip(longest.tolist(), (drawn.sum(1) / longest).tolist(), strict=True))


class Servers:
    """Actors that take one item at a time, first come first served."""

    def __init__(self, number: int, seconds: float) -> None:
        self._free = [0.0] * max(1, number)
        self._seconds = seconds
        self.busy = 0.0

    def serve(self, now: float) -> float:
        """When an item that arrives now is done."""
        if not self._seconds:
            return now
        end = max(now, self._free[0]) + self._seconds
        heapq.heapreplace(self._free, end)
        self.busy += self._seconds
        return end

    def utilisation(self, seconds: float) -> float:
        return self.busy / (len(self._free) * seconds) if seconds else 0.0
