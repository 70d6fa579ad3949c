"""The one totally ordered command stream that every trainer worker follows.

Training, gathering weights and checkpointing are collectives: all ranks must do the same at the same time. So no rank
ever decides what comes next; the driver appends commands, each rank takes command i, executes it, reports, and takes
command i + 1.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import ray

from actors.commands import Command, Done
from actors.faults import ActorLost
from actors.nodes import Process


class TrainerFailed(RuntimeError):
    """A trainer worker raised; carries its traceback."""


class TrainerLost(ActorLost):
    """A worker, or what holds the workers together, died or hung: a new group can go on from a checkpoint."""


@dataclass(frozen=True, slots=True)
class Broken:
    """Why no further result will come."""

    cause: str
    lost: bool  # as TrainerLost; otherwise a bug or bad data


@ray.remote(num_cpus=0)
class CommandStream:
    """Append-only commands and their results. Lives as long as the run; workers that restart find it again."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._commands: list[Command] = []
        self._results: list[dict[int, Done]] = []
        self._workers: dict[int, Process] = {}
        self._broken: Broken | None = None
        self._changed = asyncio.Condition()

    async def append(self, command: Command) -> int:
        """Add a command; returns its index."""
        async with self._changed:
            self._commands.append(command)
            self._results.append({})
            self._changed.notify_all()
            return len(self._commands) - 1

    async def take(self, index: int, rank: int, worker: Process) -> Command:
        """Wait for command ``index``. The first call of a rank says that its engine is up, and where."""
        async with self._changed:
            self._workers[rank] = worker
            self._changed.notify_all()
            await self._changed.wait_for(lambda: len(self._commands) > index)
            return self._commands[index]

    async def report(self, index: int, rank: int, done: Done) -> None:
        async with self._changed:
            self._results[index][rank] = done
            self._changed.notify_all()

    async def fail(self, broken: Broken) -> None:
        """Every present and future wait for a result ends with this. The first cause is the one kept."""
        async with self._changed:
            self._broken = self._broken or broken
            self._changed.notify_all()

    async def result(self, index: int) -> Done | Broken:
        """Wait until every rank has executed command ``index``; rank 0's account of it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._broken or len(self._results[index]) == self._ranks)
            return self._broken or self._results[index][0]

    async def ready(self) -> tuple[Process, ...] | Broken:
        """Wait until every rank waits for its first command."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._broken or len(self._workers) == self._ranks)
            return self._broken or tuple(self._workers[rank] for rank in range(self._ranks))
