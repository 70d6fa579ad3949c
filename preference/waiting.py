"""Who waited for what, and for how long."""

from __future__ import annotations


class WaitClock:
    """How long somebody waited for what, in the unit of the clock that the caller reads."""

    def __init__(self, now: float) -> None:
        self._began = self._since = now
        self._for: str | None = None
        self.waited: dict[str, float] = {}

    def note(self, now: float, waits_for: str | None) -> None:
        """From ``now`` on it waits for this; None: for nothing."""
        if self._for is not None:
            self.waited[self._for] = self.waited.get(self._for, 0.0) + now - self._since
        self._for, self._since = waits_for, now

    def shares(self, now: float) -> dict[str, float]:
        """Share of the time until ``now``, by what was waited for: {"reference": 0.34}."""
        self.note(now, self._for)
        passed = now - self._began
        return {name: seconds / passed for name, seconds in self.waited.items()} if passed > 0 else {}
