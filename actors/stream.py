"""The one totally ordered command stream that every trainer worker follows.

Training, gathering weights and checkpointing are collectives: all ranks must do the same at the same time. So no rank
ever decides what comes next; the driver appends commands, each rank takes command i, executes it, reports, and takes
command i + 1.
"""

from __future__ import annotations

import asyncio

import ray

from actors.commands import Command, Done


class TrainerFailed(RuntimeError):
    """A trainer worker died or raised; carries its traceback."""


@ray.remote(num_cpus=0)
class CommandStream:
    """Append-only commands and their results. Lives as long as the run; workers that restart find it again."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._commands: list[Command] = []
        self._results: list[dict[int, Done]] = []
        self._nodes: dict[int, str] = {}
        self._failure: str | None = None
        self._changed = asyncio.Condition()

    async def append(self, command: Command) -> int:
        """Add a command; returns its index."""
        async with self._changed:
            self._commands.append(command)
            self._results.append({})
            self._changed.notify_all()
            return len(self._commands) - 1

    async def take(self, index: int, rank: int, node: str) -> Command:
        """Wait for command ``index``. The first call of a rank says that its engine is up, and on which node."""
        async with self._changed:
            self._nodes[rank] = node
            self._changed.notify_all()
            await self._changed.wait_for(lambda: len(self._commands) > index)
            return self._commands[index]

    async def report(self, index: int, rank: int, done: Done) -> None:
        async with self._changed:
            self._results[index][rank] = done
            self._changed.notify_all()

    async def fail(self, traceback: str) -> None:
        """Every present and future wait for a result raises TrainerFailed. The first cause is the one kept."""
        async with self._changed:
            self._failure = self._failure or traceback
            self._changed.notify_all()

    async def result(self, index: int) -> Done:
        """Wait until every rank has executed command ``index``; rank 0's account of it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._failure or len(self._results[index]) == self._ranks)
            if self._failure:
                raise TrainerFailed(self._failure)
            return self._results[index][0]

    async def ready(self) -> list[str]:
        """Wait until every rank waits for its first command; the node of each rank."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._failure or len(self._nodes) == self._ranks)
            if self._failure:
                raise TrainerFailed(self._failure)
            return [self._nodes[rank] for rank in range(self._ranks)]
