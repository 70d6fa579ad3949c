"""Remote calls with a deadline and an owner, and a pool that hands work to whichever actor is idle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from actors.quiet import quiet_env
from configs.schema import Group

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


class StageFailed(RuntimeError):
    """A stage's actor raised, died or missed its deadline. The message names stage, actor and cause."""


async def remote_call(ref: Any, *, who: str, seconds: float) -> Any:
    """Await an ObjectRef; a remote error, a dead actor or a missed deadline becomes an attributable StageFailed."""
    try:
        # Not wait_for: on Python 3.11 it swallows a cancellation that arrives together with the result.
        async with asyncio.timeout(seconds):
            return await ref
    except TimeoutError:
        raise StageFailed(f"{who}: no answer within {seconds:.0f} s; hung, or raise deadlines.call_s") from None
    except RayActorError as error:
        raise StageFailed(f"{who}: the actor died: {error}") from error
    except RayTaskError as error:
        raise StageFailed(f"{who}: {error}") from error
    except RayError as error:
        raise StageFailed(f"{who}: {type(error).__name__}: {error}") from error


class ActorPool(Generic[A]):
    """Runs each call on an idle actor; calls beyond the number of actors wait their turn, first come first served."""

    def __init__(self, stage: str, actors: Sequence[A], seconds: float) -> None:
        self._stage, self._actors, self._seconds = stage, tuple(actors), seconds
        self._idle: asyncio.Queue[int] = asyncio.Queue()
        for index in range(len(self._actors)):
            self._idle.put_nowait(index)

    async def call(self, submit: Callable[[A], Any]) -> Any:
        """``submit(actor)`` starts a remote method and returns its ObjectRef."""
        index = await self._idle.get()
        try:
            return await remote_call(
                submit(self._actors[index]), who=f"{self._stage} actor {index}", seconds=self._seconds
            )
        finally:
            self._idle.put_nowait(index)

    def kill(self) -> None:
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
