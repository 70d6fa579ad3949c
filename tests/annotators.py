"""Scripted people who label over HTTP as fast as the server lets them; for tests and benchmarks."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp


@dataclass
class Annotator:
    """One person's browser: retries what it got no answer to, as the page does."""

    base: str
    code: str
    seed: int = 0
    acknowledged: dict[str, str] = field(default_factory=dict)
    """Item -> verdict, of the labels that the server has confirmed."""
    unconfirmed: dict[str, str] = field(default_factory=dict)
    """Of those that were sent and never answered."""
    latencies: list[float] = field(default_factory=list)
    """Seconds of every request that was answered."""
    retries: int = 0
    reason: str = ""
    """Why there was no further item."""

    async def work(self, until: Callable[[], bool] = lambda: False) -> None:
        """Label until nothing is offered any more, or until ``until``."""
        chance = random.Random(self.seed)
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
            self._http = http
            self._csrf = (await self._post("session", code=self.code))["csrf"]
            while not until():
                offered = await self._post("next")
                if offered["item"] is None:
                    self.reason = offered["reason"]
                    return
                item = offered["item"]["id"]
                verdict = chance.choice(["left", "right", "tie", "both_bad", "cannot_judge"])
                self.unconfirmed[item] = verdict
                await self._post("label", item=item, verdict=verdict, seconds=1.0)
                self.acknowledged[item] = self.unconfirmed.pop(item)

    _http: aiohttp.ClientSession = field(init=False, repr=False)
    _csrf: str = field(default="", init=False, repr=False)

    async def _post(self, path: str, **body: Any) -> dict[str, Any]:
        while True:
            began = time.perf_counter()
            try:
                headers = {"X-CSRF-Token": self._csrf}
                async with self._http.post(f"{self.base}/api/{path}", json=body, headers=headers) as answer:
                    found: dict[str, Any] = await answer.json()
                    if answer.status not in (429, 503):
                        assert answer.status == 200, (path, body, found)
                        self.latencies.append(time.perf_counter() - began)
                        return found
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
                pass  # the server died before or after it wrote: only asking again tells
            self.retries += 1
            await asyncio.sleep(0.05)
