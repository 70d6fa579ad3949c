"""Waiting for nodes, on a clusterless clock: what is asked for, when the wait ends, what is said."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from actors.faults import StageFailed
from actors.placement import bundles, requested
from configs.loading import validate
from configs.runs import RunConfig
from pipelines.nodes import nodes_arrived


def config(nodes_s: float = 60.0, **resources: Any) -> RunConfig:
    return validate(
        RunConfig,
        {
            "run": {"name": "t"},
            "model": {"path": "/m"},
            "prompts": {"train": "/a", "heldout": "/b"},
            "judge": {"kind": "rule", "rule": "a.b:c"},
            "resources": {"sampler": {"actors": 2, "cpus": 1, "gpus": 1, "custom": {"sampler": 1}}, **resources},
            "deadlines": {"nodes_s": nodes_s},
        },
    )


class Cluster:
    """Grows by one node after every question, once it has been asked for nodes."""

    def __init__(self, *stages: Mapping[str, float]) -> None:
        self.stages, self.requests = list(stages), list[list[Mapping[str, float]]]()

    def resources(self) -> Mapping[str, float]:
        return self.stages.pop(0) if self.requests and len(self.stages) > 1 else self.stages[0]

    def request(self, wanted: Sequence[Mapping[str, float]]) -> None:
        self.requests.append(list(wanted))


def wait(cluster: Cluster, run: RunConfig) -> list[str]:
    said: list[str] = []
    asyncio.run(nodes_arrived(run, said.append, cluster.resources, cluster.request, poll_s=0.0))
    return said


FULL = {"CPU": 8.0, "GPU": 2.0, "sampler": 2.0}


def test_a_cluster_that_holds_the_run_is_not_asked() -> None:
    cluster = Cluster(FULL)
    assert wait(cluster, config()) == []
    assert cluster.requests == []


def test_what_every_actor_needs_is_asked_for_and_the_request_withdrawn() -> None:
    cluster = Cluster({"CPU": 8.0}, {"CPU": 8.0, "GPU": 1.0, "sampler": 1.0}, FULL)
    first, last = wait(cluster, config())
    assert "GPU: 2 needed, 0 present" in first
    assert "the nodes are there" in last
    asked, withdrawn = cluster.requests
    assert asked == bundles(config())
    assert withdrawn == []


def test_a_node_that_never_comes_is_named() -> None:
    cluster = Cluster({"CPU": 8.0})
    with pytest.raises(
        StageFailed, match=r"no node came within 0 s \(deadlines.nodes_s\):\n  GPU: 2 needed, 0 present"
    ):
        wait(cluster, config(nodes_s=1e-9))
    assert cluster.requests[-1] == []


def test_bundles_add_up_to_what_the_run_reserves() -> None:
    run = config(trainer={"actors": 3, "cpus": 0.5, "gpus": 2})
    total: dict[str, float] = {"CPU": run.resources.data_cpus}
    for bundle in bundles(run):
        assert all(bundle.values())
        for name, amount in bundle.items():
            total[name] = total.get(name, 0.0) + amount
    assert total == pytest.approx(requested(run))
    assert len(bundles(run)) == 2 + 1 + 1 + 3
    assert len(bundles(run, training=False)) == 2 + 1 + 1
