"""How new weights travel from the trainer's ranks to the samplers' engines, in seconds.

gather       ZeRO-3 shards to one rank, bucket by bucket
shm          written to the node's shared memory once, read by each of its engines
filesystem   written to the shared file system once, read from it by every sampler node
broadcast    a pipelined binary tree over the nodes, bucket by bucket: bytes / (bandwidth / 2) + depth x hop
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from configs.runs import RunConfig
from pipelines.plan.architecture import Architecture, PlanError
from pipelines.plan.cluster import Cluster
from pipelines.plan.memory import item_bytes

_FAN_OUT = 2


@dataclass(frozen=True, slots=True)
class WeightPath:
    """One publication."""

    transport: str
    gather_s: float
    """The trainer's own part: it takes no step meanwhile."""
    transfer_s: float
    """Until the first sampler node has everything."""
    hop_s: float
    """How much later each further level of the tree has it."""
    nodes: int
    """Sampler nodes."""
    load_s: float
    """Of an engine taking them over, from its node."""

    @property
    def depth(self) -> int:
        """Levels of the binary tree below the trainer's node: 2 nodes, 4, 8 ..."""
        return math.ceil(math.log2(self.nodes + 2)) - 1 if self.transport == "broadcast" else 0

    def levels(self) -> list[tuple[int, int]]:
        """First and one past the last sampler node of every level, nearest first."""
        if not self.depth:
            return [(0, self.nodes)]
        return [(2**level - 2, min(2 ** (level + 1) - 2, self.nodes)) for level in range(1, self.depth + 1)]

    @property
    def seconds(self) -> float:
        """From the end of the optimizer step until every engine serves them."""
        return self.gather_s + self.transfer_s + max(0, self.depth - 1) * self.hop_s + self.load_s


def weight_path(
    arch: Architecture, config: RunConfig, cluster: Cluster, ranks: int, engines: int, gpus: int
) -> WeightPath:
    """For ``engines`` of ``gpus`` GPUs. Raises PlanError for shared memory between nodes."""
    pool, source = cluster.pool("sampler"), cluster.pool("trainer")
    size = float(item_bytes(config) * arch.parameters) / 1e9  # GB
    nodes = math.ceil(engines * gpus / pool.gpus)
    local = pool is source and ranks + engines * gpus <= pool.gpus
    transport = config.weights.transport if cluster.transport == "config" else cluster.transport
    if transport == "auto":
        transport = "shm" if local else "filesystem"
    if transport == "shm" and not local:
        raise PlanError(
            f"transport = shm, but {ranks} trainer and {engines * gpus} sampler GPUs take more than one node of "
            f"{pool.gpus}: use filesystem or broadcast"
        )
    eff = cluster.efficiency
    network = source.network_gb_s * eff.link
    inside = source.device.link_gb_s * eff.link
    # One rank receives all shards: over its node's links, or from other nodes over its node's network.
    gather = 0.0 if ranks == 1 else size / (inside if ranks <= source.gpus else min(inside, network))
    load = size / gpus / min(pool.device.host_gb_s, cluster.host_copy_gb_s)
    if transport == "shm":
        return WeightPath("shm", gather, size / cluster.host_copy_gb_s, 0.0, 1, load)
    if transport == "filesystem":
        return WeightPath("filesystem", gather, size * (1 + nodes) / cluster.storage_gb_s, 0.0, nodes, load)
    slowest = min(network, pool.network_gb_s * eff.link) / _FAN_OUT
    hop = config.weights.bucket_mb / 1e3 / slowest + eff.collective_s
    return WeightPath("broadcast", gather, size / slowest, hop, nodes, load)
