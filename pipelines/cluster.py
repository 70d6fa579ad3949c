"""The Ray cluster of a run: joined or started, large enough, and its nodes see the run's directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from actors.faults import StageFailed
from actors.nodes import blind_nodes
from configs.runs import TrainingConfig
from pipelines.doctor import cluster_shortfalls
from pipelines.ledger.ledger import LedgerError


def refuse_invisible(run_dir: Path) -> None:
    """Raise LedgerError if a node of the cluster does not see the run directory: checkpoints would be lost there."""
    if blind := blind_nodes(run_dir):
        raise LedgerError(
            f"run.root = {run_dir.parent} is not visible from {', '.join(blind)} as it is here: checkpoints and "
            f"weights pass through it; set run.root to a directory that all nodes share"
        )


def join_cluster(config: TrainingConfig, *, training: bool = True) -> None:
    """``connect``, and raise StageFailed where what is there cannot hold the run."""
    import ray

    connect()
    missing = cluster_shortfalls(config, ray.cluster_resources(), training=training)
    if missing:
        raise StageFailed("the cluster cannot hold this run:\n  " + "\n  ".join(missing))


def connect() -> None:
    """Join the cluster of RAY_ADDRESS, or start a cluster of one."""
    import ray
    import ray.data  # puts up its log handlers now, before those are taken down

    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if not os.environ.get("RAY_ADDRESS"):
        # Only prompts, candidates and batches pass through the store: megabytes.
        options |= {"object_store_memory": 512 * 2**20, "include_dashboard": False}
    try:
        ray.init(**options)
    except ConnectionError as error:
        raise StageFailed(f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}: no cluster answers there: {error}") from None
