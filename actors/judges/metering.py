"""How fast and for how much an endpoint is asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from actors.judges.errors import BudgetExhausted

Sleep = Callable[[float], Awaitable[object]]


class Pace:
    """At most ``per_minute`` requests a minute, evenly spaced; None: as fast as they come."""

    def __init__(
        self, per_minute: float | None, sleep: Sleep = asyncio.sleep, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._sleep, self._clock = sleep, clock
        self._next = 0.0

    async def wait(self) -> None:
        """Until this request may go."""
        now = self._clock()
        at = max(self._next, now)
        self._next = at + self._interval
        if at > now:
            await self._sleep(at - now)

    def hold(self, seconds: float) -> None:
        """Nobody goes for ``seconds``: the endpoint asked for a pause."""
        self._next = max(self._next, self._clock() + seconds)


class Budget:
    """What may be spent. A request reserves the most it can cost, so ``limit`` is never exceeded, only approached."""

    def __init__(self, limit: float | None, spent: float = 0.0) -> None:
        """``spent`` is what earlier attempts of the run have cost."""
        self.spent = spent
        self._limit, self._reserved = limit, 0.0
        self._settled = asyncio.Condition()

    async def reserve(self, most: float) -> None:
        """Set ``most`` aside, waiting for requests in flight to cost less than they might; or raise BudgetExhausted."""
        async with self._settled:
            while self._limit is not None and self.spent + self._reserved + most > self._limit:
                if self._reserved <= 0:
                    raise BudgetExhausted(
                        f"the judge has cost {self.spent:.6g} of judge.budget = {self._limit:g}, and the next question "
                        f"may cost {most:.6g}: raise judge.budget and resume; what is judged is not asked again"
                    )
                await self._settled.wait()
            self._reserved += most

    async def settle(self, most: float, cost: float) -> None:
        """What had reserved ``most`` has cost ``cost``."""
        async with self._settled:
            self._reserved = self._reserved - most if self._reserved - most > most * 1e-9 else 0.0
            self.spent += cost
            self._settled.notify_all()


@dataclass(frozen=True, slots=True)
class Usage:
    """What an endpoint was asked since the judge started."""

    requests: int = 0
    """Retries included."""
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    """Of all attempts of the run, in the currency of the prices; what may have been billed without an answer counts."""
