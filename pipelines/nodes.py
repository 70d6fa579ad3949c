"""Waiting for nodes: a shared cluster grows when a run asks for more than is there, which takes minutes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from actors.faults import StageFailed
from actors.nodes import request_nodes
from actors.placement import bundles
from configs.runs import TrainingConfig
from pipelines.doctor import cluster_shortfalls

_POLL_S = 2.0


def _resources() -> Mapping[str, float]:
    import ray

    found: Mapping[str, float] = ray.cluster_resources()
    return found


async def nodes_arrived(
    config: TrainingConfig,
    say: Callable[[str], None],
    resources: Callable[[], Mapping[str, float]] = _resources,
    request: Callable[[Sequence[Mapping[str, float]]], None] = request_nodes,
    poll_s: float = _POLL_S,
) -> None:
    """Wait until the joined cluster holds the run, asking its autoscaler for what the run needs.

    Raises StageFailed naming what is still missing after ``deadlines.nodes_s``.
    """
    missing = cluster_shortfalls(config, resources())
    if not missing:
        return
    limit = config.deadlines.nodes_s
    say(f"waiting up to {limit:.0f} s for nodes: " + "; ".join(missing))
    started = time.monotonic()
    request(bundles(config))
    try:
        while missing := cluster_shortfalls(config, resources()):
            if time.monotonic() - started >= limit:
                raise StageFailed(
                    f"the cluster cannot hold this run, and no node came within {limit:.0f} s (deadlines.nodes_s):\n  "
                    + "\n  ".join(missing)
                )
            await asyncio.sleep(poll_s)
    finally:
        request(())  # what the run's actors hold keeps the nodes; a standing request would keep them for ever
    say(f"the nodes are there after {time.monotonic() - started:.0f} s")
