"""Group commit: whatever waits is written in one transaction, so that a disk's fsync is paid once for many labels."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection

from pipelines.annotate.labelling import Refused
from pipelines.annotate.store import Store

T = TypeVar("T")
Work = Callable[[Connection], Any]
MOST = 64  # in one transaction; bounds how long the first of them waits for the last


class _Job:
    __slots__ = ("future", "loop", "outcome", "work")

    def __init__(self, work: Work) -> None:
        self.work = work
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.outcome: tuple[Any, Exception | None] = (None, None)

    def resolve(self) -> None:
        if self.future.done():  # the client has gone
            return
        result, error = self.outcome
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class GroupCommit:
    """Writes to a store from an event loop. ``submit`` returns once the transaction is durable, never before."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="group-commit", daemon=True)
        self._thread.start()

    async def submit(self, work: Callable[[Connection], T]) -> T:
        """``work``'s result, or what it raised. It may run twice, so it changes nothing but the database."""
        job = _Job(work)
        self._queue.put(job)
        result: T = await job.future
        return result

    def close(self) -> None:
        """Commit what was submitted, then stop."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        last = False
        while not last:
            batch = [self._queue.get()]
            while len(batch) < MOST and not self._queue.empty():
                batch.append(self._queue.get())
            jobs = [job for job in batch if job is not None]
            last = len(jobs) < len(batch)
            if jobs:
                self._commit(jobs)
                jobs[0].loop.call_soon_threadsafe(_resolve, jobs)

    def _commit(self, jobs: list[_Job]) -> None:
        try:
            self._store.write(lambda db: _do(jobs, db))
        except Exception as error:
            # One broken job must not take its neighbours along: each gets a transaction of its own.
            for job in jobs:
                job.outcome = (None, error)
                if len(jobs) > 1:
                    self._commit([job])


def _do(jobs: list[_Job], db: Connection) -> None:
    for job in jobs:
        try:
            job.outcome = (job.work(db), None)
        except Refused as refusal:  # raised before anything is written, so the others' work stands
            job.outcome = (None, refusal)


def _resolve(jobs: list[_Job]) -> None:
    for job in jobs:
        job.resolve()
