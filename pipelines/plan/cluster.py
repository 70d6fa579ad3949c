"""The cluster as a YAML file says it: pools of nodes, their GPUs and links, what they cost, and what is assumed.

    pools:
    - {nodes: 4, gpus: 8, gpu: H100-SXM, network_gbit_s: 3200, price_per_hour: 31.2}
    storage_gb_s: 10
    workload: {response_tokens: 400}

Peaks are the vendors' published ones, dense, and links count one direction; memory is what a driver reports as usable.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError, model_validator

from configs.loading import ConfigError, read_yaml
from configs.section import Section

StageName = Literal["sampler", "judge", "reference", "trainer"]
STAGES: tuple[StageName, ...] = ("sampler", "judge", "reference", "trainer")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device."""

    memory_gib: float
    tflops: float
    """Dense bf16 matrix products, 10^12 FLOP/s."""
    bandwidth_gb_s: float
    """Device memory."""
    link_gb_s: float
    """To the other GPUs of its node, one direction: half of what is published for NVLink."""
    host_gb_s: float
    """To the memory of the node, one direction: PCIe x16."""


GPUS = {
    "A10G": Gpu(22.0, 70, 600, 32, 32),
    "L4": Gpu(22.0, 121, 300, 32, 32),
    "L40S": Gpu(44.4, 362, 864, 32, 32),
    "A100-40GB": Gpu(39.4, 312, 1555, 300, 32),
    "A100-80GB": Gpu(79.1, 312, 2039, 300, 32),
    "H100-PCIe": Gpu(79.1, 756, 2000, 64, 64),
    "H100-SXM": Gpu(79.1, 989, 3350, 450, 64),
    "H200": Gpu(139.8, 989, 4800, 450, 64),
    "B200": Gpu(178.3, 2250, 8000, 900, 64),
    "MI300X": Gpu(191.5, 1307, 5300, 448, 64),
}


class OwnGpu(Section):
    """A GPU type that is not in the library."""

    memory_gib: PositiveFloat
    """Usable memory."""
    tflops: PositiveFloat
    """Dense bf16 peak."""
    bandwidth_gb_s: PositiveFloat
    """Device memory bandwidth."""
    link_gb_s: PositiveFloat
    """To the other GPUs of its node, one direction."""
    host_gb_s: PositiveFloat = 32.0
    """To the memory of the node, one direction."""


class Pool(Section):
    """Nodes that are alike."""

    nodes: PositiveInt = 1
    """How many."""
    gpus: PositiveInt = 8
    """GPUs of a node."""
    gpu: str | OwnGpu
    """A name of the library, or the numbers of another type."""
    host_memory_gib: PositiveFloat | None = None
    """Memory of a node that offloaded optimizer states may take; none: it is not checked."""
    network_gbit_s: PositiveFloat = 100.0
    """Network of a node, one direction, all adapters together."""
    price_per_hour: NonNegativeFloat = 0.0
    """Of a node."""
    stages: tuple[StageName, ...] = STAGES
    """Which groups are placed here; with several pools every group has exactly one."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if isinstance(self.gpu, str) and self.gpu not in GPUS:
            raise ValueError(
                f"gpu = {self.gpu!r} is not in the library ({', '.join(GPUS)}): name one of them, or give memory_gib, "
                f"tflops, bandwidth_gb_s and link_gb_s"
            )
        return self

    @property
    def device(self) -> Gpu:
        if isinstance(self.gpu, str):
            return GPUS[self.gpu]
        return Gpu(**self.gpu.model_dump())

    @property
    def size(self) -> int:
        """GPUs of all nodes."""
        return self.nodes * self.gpus

    @property
    def network_gb_s(self) -> float:
        return self.network_gbit_s / 8

    @property
    def name(self) -> str:
        return self.gpu if isinstance(self.gpu, str) else "own GPU type"


class WorkloadSpec(Section):
    """What the configuration cannot say about the data; measured values of an earlier run are best."""

    prompt_tokens: PositiveFloat | None = None
    """Mean tokens of a prompt; none: half of prompts.max_tokens."""
    response_tokens: PositiveFloat | None = None
    """Mean tokens of a response before it is cut off; none: half of sampling.max_tokens."""
    spread: Annotated[float, Field(ge=0, le=3)] = 0.6
    """Standard deviation of the logarithm of response lengths (log-normal); 0: all alike."""
    tie_rate: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of prompts that make no pair."""


class JudgeSpec(Section):
    """What one judgement takes."""

    seconds: NonNegativeFloat = 0.002
    """Of one judge actor for one prompt with its candidates, for judges that run no model of their own."""
    parameters_b: NonNegativeFloat = 0.0
    """Size of a judge model on GPUs in billions; 0: read from its directory."""


class Efficiency(Section):
    """Shares of the published peaks that are reached, and costs beside them. Defaults are usual for tuned systems."""

    train: Annotated[float, Field(gt=0, le=1)] = 0.40
    """Of peak FLOP/s in forward and backward."""
    forward: Annotated[float, Field(gt=0, le=1)] = 0.50
    """Of peak FLOP/s in scoring and prefill."""
    decode: Annotated[float, Field(gt=0, le=1)] = 0.70
    """Of memory bandwidth in decoding."""
    link: Annotated[float, Field(gt=0, le=1)] = 0.70
    """Of link bandwidth in collectives."""
    decode_overhead_s: NonNegativeFloat = 0.003
    """Of every decoding step: scheduler, sampling, launches."""
    tensor_parallel_s: NonNegativeFloat = 0.00002
    """Of every all-reduce of a tensor-parallel engine (two a layer)."""
    collective_s: NonNegativeFloat = 0.00002
    """Latency a hop of a collective between nodes."""
    driver_s: NonNegativeFloat = 0.002
    """Driver time of one prompt through all stages (``benchmarks.control_plane`` measures it)."""


class Reliability(Section):
    """What breaks, for the simulation."""

    gpu_mtbf_hours: NonNegativeFloat = 50_000.0
    """Mean time between failures of one GPU with its share of node and network; 0: nothing fails. The default is that
    of Llama 3's training: 419 unexpected interruptions of 16,384 GPUs in 54 days (2407.21783, section 3.3.4)."""
    restart_s: NonNegativeFloat = 180.0
    """From a failure to the restarted actor's first work."""
    checkpoint_steps: PositiveInt | None = None
    """Steps between checkpoints; none: checkpoint.every."""


class Cluster(Section):
    pools: tuple[Pool, ...]
    """The nodes, by kind."""
    storage_gb_s: PositiveFloat = 2.0
    """Of the shared file system, all nodes together."""
    host_copy_gb_s: PositiveFloat = 10.0
    """Of one process copying to or from its node's shared memory."""
    transport: Literal["config", "shm", "filesystem", "broadcast"] = "config"
    """How weights travel: as weights.transport says, or another way to be compared with it. ``broadcast``: a pipelined
    binary tree over the nodes, bucket by bucket."""
    workload: WorkloadSpec = WorkloadSpec()
    """Lengths and ties that are to be expected."""
    judge: JudgeSpec = JudgeSpec()
    """What judging takes."""
    efficiency: Efficiency = Efficiency()
    """How far from the published peaks the work stays."""
    reliability: Reliability = Reliability()
    """How often something fails."""

    @model_validator(mode="after")
    def _placed(self) -> Self:
        for stage in STAGES:
            places = [i for i, pool in enumerate(self.pools) if stage in pool.stages]
            if len(places) != 1:
                where = "no pool" if not places else f"pools {', '.join(map(str, places))}"
                raise ValueError(f"{stage} is placed in {where}: list it in the stages of exactly one pool")
        return self

    def pool(self, stage: StageName) -> Pool:
        return next(p for p in self.pools if stage in p.stages)

    @property
    def size(self) -> int:
        return sum(p.size for p in self.pools)

    @property
    def price_per_hour(self) -> float:
        """Of all nodes, used or not."""
        return sum(p.nodes * p.price_per_hour for p in self.pools)


def read_cluster(path: str | Path) -> Cluster:
    """Raises ConfigError with one line a problem."""
    try:
        return Cluster.model_validate(read_yaml(path))
    except ValidationError as error:
        lines = []
        for e in error.errors():
            field = ".".join(str(part) for part in e["loc"])
            message = "unknown key" if e["type"] == "extra_forbidden" else e["msg"].removeprefix("Value error, ")
            lines.append(f"cluster file {path}: {field}: {message}" if field else f"cluster file {path}: {message}")
        raise ConfigError("\n".join(lines)) from None
