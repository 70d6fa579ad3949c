"""Questions to a pool of actors: what waits for an actor goes to it together, as one call."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from actors.faults import ActorLost
from actors.pool import Crew

_MOST = 64  # questions of one call: enough to fill a model's batches, few enough for its deadline
Q = TypeVar("Q")
A = TypeVar("A")


class Batched(Generic[Q, A]):
    """Hands questions to whichever actor is idle, an even share of what waits at a time; answers one by one.

    What an actor had in hand when it was lost is asked again before anything else.
    """

    def __init__(self, crew: Crew[Any], submit: Callable[[Any, list[Q]], Any]) -> None:
        """``submit(actor, questions)`` starts the remote method that gives their answers, in order."""
        self._crew, self._submit = crew, submit
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._idle = list(range(len(crew)))
        self._running: set[asyncio.Task[None]] = set()

    async def ask(self, question: Q) -> A:
        """The answer, or what its call raised (``StageFailed``)."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[A] = loop.create_future()
        self._waiting.append((question, future))
        loop.call_soon(self._assign)  # after whatever is asked in the same breath
        return await future

    def _assign(self) -> None:
        while self._waiting and self._idle:
            share = min(_MOST, math.ceil(len(self._waiting) / len(self._idle)))
            batch = [self._waiting.popleft() for _ in range(share)]
            task = asyncio.create_task(self._run(self._idle.pop(0), batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, index: int, batch: Sequence[tuple[Q, asyncio.Future[A]]]) -> None:
        questions = [question for question, _ in batch]
        try:
            answers: list[A] = await self._crew.call(index, "judge", lambda actor: self._submit(actor, questions))
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        except ActorLost:
            self._waiting.extendleft(reversed(batch))
            self._assign()  # to those that are idle; this one is not before its replacement is up
            with suppress(Exception):  # where none comes up, whoever asks it next is told
                await self._crew.up(index)
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        finally:
            self._idle.append(index)
            self._assign()

    def close(self) -> None:
        for task in self._running:
            task.cancel()
        for _, future in self._waiting:
            future.cancel()
