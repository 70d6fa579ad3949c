"""Remote calls with a deadline and an owner; crews whose lost actors are replaced; pools that use whoever is idle."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar, cast

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from actors.faults import ActorLost, Faults, StageFailed, in_short
from actors.quiet import quiet_env
from configs.schema import Deadlines, Group

A = TypeVar("A")


# PyTorch on CPU returns every large tensor to the kernel and faults it in anew: a quarter of a training step. So: huge
# pages, one arena (actors' calls may run in any thread), small blocks kept for reuse.
_ALLOCATOR = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {
        "hugetlb": 1,
        "arena_max": 1,
        "mmap_threshold": 2**22,
        "trim_threshold": 2**27,
    }.items()
)


def process_env(group: Group) -> dict[str, str]:
    """Environment of one process of ``group``: quiet, and with its own number of threads."""
    env = {**quiet_env(), "OMP_NUM_THREADS": str(group.threads)}
    return env if group.gpus else {"GLIBC_TUNABLES": _ALLOCATOR, **env}


def actor_options(group: Group, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Ray options of one actor of ``group``: what it reserves, how many threads it may use, a quiet environment."""
    variables = {**process_env(group), **(env or {})}
    return {
        "num_cpus": group.cpus,
        "num_gpus": group.gpus,
        "resources": dict(group.custom),
        "runtime_env": {"env_vars": variables},
    }


async def remote_call(ref: Any, *, who: str, seconds: float) -> Any:
    """Await an ObjectRef. Raises ActorLost where another actor could answer, StageFailed where the call raised."""
    try:
        # Not wait_for: on Python 3.11 it swallows a cancellation that arrives together with the result.
        async with asyncio.timeout(seconds):
            return await ref
    except TimeoutError:
        raise ActorLost(f"{who}: no answer within {seconds:.0f} s; hung, or raise the deadline (deadlines:)") from None
    except RayTaskError as error:
        raise StageFailed(f"{who}: {error}") from error
    except RayActorError as error:
        if error.actor_init_failed:  # what a constructor raises, another one would raise, too
            raise StageFailed(f"{who}: the actor could not start: {error}") from error
        raise ActorLost(f"{who}: the actor died: {in_short(error)}") from error
    except RayError as error:
        raise ActorLost(f"{who}: {type(error).__name__}: {in_short(error)}") from error


class Crew(Generic[A]):
    """The actors of one stage. One that is lost is replaced by a fresh one; its caller repeats what it was doing.

    call(i) ──> actor i answers
            └─> ActorLost: killed, counted, replaced ──start──> ready(i) ──> up again
    """

    def __init__(
        self,
        stage: str,
        size: int,
        start: Callable[[int], A],
        ready: Callable[[int, A], Awaitable[None]],
        deadlines: Deadlines,
        faults: Faults,
    ) -> None:
        """``start(i)`` creates actor i; ``ready(i, actor)`` waits until it can work, with all that it must know."""
        self._stage, self._start, self._ready = stage, start, ready
        self._deadlines, self._faults = deadlines, faults
        self._actors = [start(i) for i in range(size)]
        self._starting: list[asyncio.Task[None] | None] = [None] * size

    def __len__(self) -> int:
        return len(self._actors)

    async def ready(self) -> None:
        """Wait for all of them."""
        await asyncio.gather(*(self.up(i) for i in range(len(self._actors))))

    async def up(self, index: int) -> A:
        """Wait until actor ``index`` can work. Raises StageFailed where no replacement comes up."""
        if self._starting[index] is None:
            self._starting[index] = asyncio.ensure_future(self._bring_up(index))
        await asyncio.shield(cast("asyncio.Task[None]", self._starting[index]))
        return self._actors[index]

    def is_up(self, index: int) -> bool:
        """Whether it can work right now."""
        task = self._starting[index]
        return task is not None and task.done() and not task.cancelled() and task.exception() is None

    async def call(self, index: int, what: str, submit: Callable[[A], Any], seconds: float | None = None) -> Any:
        """``submit(actor)`` starts a remote method. Raises ActorLost after having set off the replacement."""
        actor = await self.up(index)
        try:
            who = f"{self._stage} actor {index} ({what})"
            return await remote_call(submit(actor), who=who, seconds=seconds or self._deadlines.call_s)
        except ActorLost as error:
            if self._actors[index] is actor:  # the first to notice replaces it
                self._replace(index, error)
                self._starting[index] = asyncio.ensure_future(self._bring_up(index))
            raise

    async def _bring_up(self, index: int) -> None:
        while True:
            try:
                return await self._ready(index, self._actors[index])
            except ActorLost as error:
                self._replace(index, error)

    def _replace(self, index: int, error: ActorLost) -> None:
        self._faults.survive(self._stage, error)
        ray.kill(self._actors[index], no_restart=True)
        self._actors[index] = self._start(index)

    async def renew(self) -> None:
        """Fresh actors for all of them."""
        size = len(self._actors)
        self.kill()
        self._actors = [self._start(i) for i in range(size)]
        self._starting = [None] * size
        await self.ready()

    def kill(self) -> None:
        for task in self._starting:
            if task is not None:
                task.cancel()
        for actor in self._actors:
            ray.kill(actor, no_restart=True)


class ActorPool(Generic[A]):
    """Runs each call on an idle actor of a crew; calls beyond their number wait their turn, first come first served.

    A call whose actor is lost is made again on the next one.
    """

    def __init__(self, crew: Crew[A], ahead: int = 0) -> None:
        """``ahead``: calls that an actor is given before it has answered the one before, so that it never waits."""
        self._crew = crew
        self._idle: asyncio.Queue[int] = asyncio.Queue()
        self._returning: set[asyncio.Task[None]] = set()
        for _ in range(1 + ahead):
            for index in range(len(crew)):
                self._idle.put_nowait(index)

    async def call(self, what: str, submit: Callable[[A], Any]) -> Any:
        """``submit(actor)`` starts a remote method and returns its ObjectRef."""
        while True:
            index = await self._idle.get()
            try:
                return await self._crew.call(index, what, submit)
            except ActorLost:
                continue
            finally:
                task = asyncio.ensure_future(self._return(index))
                self._returning.add(task)
                task.add_done_callback(self._returning.discard)

    async def _return(self, index: int) -> None:
        """A lost actor is idle again when it is up; where none comes up, the next call is told."""
        with suppress(StageFailed):
            await self._crew.up(index)
        self._idle.put_nowait(index)

    def kill(self) -> None:
        for task in self._returning:
            task.cancel()
        self._crew.kill()
