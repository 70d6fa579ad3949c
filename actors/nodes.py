"""The nodes of the cluster: what they see of the driver's files, and what runs on them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_DEADLINE_SECONDS = 60.0


def blind_nodes(directory: Path) -> list[str]:
    """Addresses of the live nodes that do not see ``directory`` as the driver sees it: nothing, or another one.

    A path that exists everywhere proves little, so a mark is left there and looked for from every node. Raises
    ray.exceptions.GetTimeoutError where a node does not answer in a minute.
    """
    mark = directory / f".seen-{uuid.uuid4().hex}"
    mark.touch()
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        looks = [
            ray.remote(_sees)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote(str(mark))
            for node in nodes
        ]
        seen: list[bool] = ray.get(looks, timeout=_DEADLINE_SECONDS)
    finally:
        mark.unlink()
    return [node["NodeManagerAddress"] for node, sees in zip(nodes, seen, strict=True) if not sees]


def request_nodes(bundles: Sequence[Mapping[str, float]]) -> None:
    """Ask the autoscaler for nodes that hold ``bundles`` at once, until the next request; none: no more."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[dict(b) for b in bundles])


def _sees(path: str) -> bool:
    return Path(path).exists()


@dataclass(frozen=True, slots=True)
class Process:
    """A process on a node. When it was started tells it from a later one with its id."""

    node: str
    pid: int
    started: float

    @classmethod
    def this(cls) -> Process:
        """The process that asks, a Ray worker."""
        return cls(ray.get_runtime_context().get_node_id(), os.getpid(), psutil.Process().create_time())


def kill_process(process: Process) -> None:
    """End a process that may hang; does not wait. Where its node is gone there is nothing to do."""
    strategy = NodeAffinitySchedulingStrategy(process.node, soft=False)
    ray.remote(_kill).options(num_cpus=0, scheduling_strategy=strategy).remote(process)


def _kill(process: Process) -> None:
    with suppress(psutil.NoSuchProcess):
        found = psutil.Process(process.pid)
        if found.create_time() == process.started:
            found.kill()
