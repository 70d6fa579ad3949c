"""Rate limits of the server: token buckets in memory, since what they guard is this process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable


class RateLimit:
    """At most ``burst`` at once and ``per_second`` in the long run, for every key by itself."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float], keys: int = 10_000) -> None:
        """``clock`` in seconds; ``keys``: how many are remembered, the one unused for longest is forgotten first."""
        self._rate, self._burst, self._keys, self._clock = per_second, burst, keys, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key -> (tokens, when)

    def allows(self, key: str, cost: float = 1.0) -> bool:
        """Take ``cost`` from ``key``'s bucket unless it holds less; a cost of 0 only asks whether there is any left."""
        now = self._clock()
        tokens, then = self._buckets.pop(key, (float(self._burst), now))
        tokens = min(self._burst, tokens + max(0.0, now - then) * self._rate)
        allowed = tokens >= max(cost, 1.0)
        self._buckets[key] = (tokens - cost if allowed else tokens, now)
        if len(self._buckets) > self._keys:
            self._buckets.popitem(last=False)
        return allowed

    @property
    def wait_s(self) -> int:
        """Seconds after which one more is allowed, rounded up."""
        return max(1, round(1 / self._rate + 0.5))
