"""What the nodes of the cluster see of the driver's files."""

from __future__ import annotations

import uuid
from pathlib import Path

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


def _sees(path: str) -> bool:
    return Path(path).exists()
