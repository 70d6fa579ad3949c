"""One placement of the groups on the cluster, judged.

With staleness k the stages overlap. A step takes as long as the slowest of them, but no less than the way of a prompt
through all of them divided by k + 1 (``preference.admission``):

    learn   = train + gather + transfer + load
    period  = max(sample, judge, reference, driver, learn, way / (k + 1))          k >= 1
    period  = max(drain, judge, reference, driver) + learn                         k = 0: training waits for all of it
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from configs.runs import RunConfig
from pipelines.plan.architecture import Architecture, PlanError
from pipelines.plan.cluster import STAGES, Cluster, StageName
from pipelines.plan.memory import (
    GIB,
    Memory,
    host_bytes,
    judge_memory,
    reference_memory,
    sampler_memory,
    trainer_memory,
)
from pipelines.plan.times import Rooflines, Stage
from pipelines.plan.weights import WeightPath, weight_path
from pipelines.plan.workload import Workload


@dataclass(frozen=True, slots=True)
class Groups:
    """Actors of every stage, and the GPUs of each."""

    engines: int
    engine_gpus: int
    judges: int
    judge_gpus: int
    references: int
    ranks: int

    def gpus(self, stage: StageName) -> int:
        taken = {
            "sampler": self.engines * self.engine_gpus,
            "judge": self.judges * self.judge_gpus,
            "reference": self.references,
            "trainer": self.ranks,
        }
        return taken[stage]


@dataclass(frozen=True, slots=True)
class Row:
    """A stage of a layout."""

    name: str
    actors: int
    gpus: int
    """Of all its actors."""
    seconds: float
    """Of a step's work."""
    limit: str
    memory: Memory | None


@dataclass(frozen=True, slots=True)
class Layout:
    """What a placement does with one staleness."""

    groups: Groups
    staleness: int
    rows: tuple[Row, ...]
    path: WeightPath
    way: float
    """Seconds of a prompt from its first token until samplers serve what was learned from it, never waiting."""
    period: float
    """Seconds a step."""
    bottleneck: str
    pairs_per_s: float
    price_per_1000_pairs: float

    def utilisation(self, row: Row) -> float:
        return min(1.0, row.seconds / self.period)


class Planner:
    """Judges layouts of one run on one cluster. Everything it raises is a PlanError."""

    def __init__(self, arch: Architecture, config: RunConfig, cluster: Cluster, work: Workload) -> None:
        self.arch, self.config, self.cluster, self.work = arch, config, cluster, work
        self.times = Rooflines(arch, config, cluster, work)

    # -- one layout ------------------------------------------------------------------------------------------------

    def layout(self, groups: Groups, staleness: int) -> Layout:
        times, work = self.times, self.work
        path = weight_path(self.arch, self.config, self.cluster, groups.ranks, groups.engines, groups.engine_gpus)
        sampler = times.sampler(groups.engines, groups.engine_gpus, float(staleness))
        judge, driver = times.judge(groups.judges, groups.judge_gpus), times.driver()
        reference = times.reference(groups.references) if groups.references else Stage(0.0, 0.0, "none")
        trainer = times.trainer(groups.ranks)
        learn = trainer.seconds + path.seconds
        # Prompts stream: without staleness the slowest of the stages before the trainer is the time of them all.
        before = max(s.seconds for s in (sampler, judge, reference, driver))
        after = judge.latency + driver.latency + reference.latency + learn
        way = before + after
        parts = {
            "sampler": sampler.seconds + path.load_s,  # engines pause while they take over weights
            "judge": judge.seconds,
            "reference": reference.seconds,
            "driver": driver.seconds,
            "trainer" if trainer.seconds >= path.seconds else "weights": learn,
        }
        period = way
        bottleneck = "no overlap (max_staleness = 0)"
        if staleness:
            bottleneck = max(parts, key=lambda name: parts[name])
            period = parts[bottleneck]
            way = self._way(groups, path, period, after)
            if way > (staleness + 1) * period:
                bottleneck = f"way of a prompt / {staleness + 1} (max_staleness)"
                low, high = period, way / (staleness + 1)
                for _ in range(40):  # the period T of which k + 1 are one way: a longer one leaves engines emptier
                    period = (low + high) / 2
                    too_short = self._way(groups, path, period, after) > (staleness + 1) * period
                    low, high = (period, high) if too_short else (low, period)
                way = period * (staleness + 1)
        memory = self.memory(groups)
        rows = (
            Row("sampler", groups.engines, groups.gpus("sampler"), sampler.seconds, sampler.limit, memory["sampler"]),
            Row("judge", groups.judges, groups.gpus("judge"), judge.seconds, judge.limit, memory.get("judge")),
            Row("reference", groups.references, groups.references, reference.seconds, reference.limit,
                memory.get("reference")),
            Row("trainer", groups.ranks, groups.ranks, trainer.seconds, trainer.limit, memory["trainer"]),
            Row("weights", 1, 0, path.seconds, path.transport, None),
            Row("driver", 1, 0, driver.seconds, driver.limit, None),
        )  # fmt: skip
        pairs = work.pairs / period
        price = self.cluster.price_per_hour / 3600 / pairs * 1000
        return Layout(groups, staleness, rows, path, way, period, bottleneck, pairs, price)

    def _way(self, groups: Groups, path: WeightPath, period: float, after: float) -> float:
        """Seconds of a batch's slowest prompt, which its engine interrupts for every version it takes over."""
        slowest = self.times.slowest_prompt(groups.engines, groups.engine_gpus, period)
        return slowest * (1 + path.load_s / period) + after

    def memory(self, groups: Groups) -> dict[str, Memory]:
        """Of one device of every group that has devices."""
        device = {stage: self.cluster.pool(stage).device for stage in STAGES}
        found = {
            "sampler": sampler_memory(self.arch, self.config, device["sampler"], groups.engine_gpus),
            "trainer": trainer_memory(self.arch, self.config, device["trainer"], groups.ranks),
        }
        if groups.references:
            found["reference"] = reference_memory(self.arch, self.config, device["reference"])
        if groups.judge_gpus:
            found["judge"] = judge_memory(self.work, device["judge"])
        return found

    def shortfalls(self, groups: Groups) -> list[str]:
        """One line a resource that is missing: what is needed, what is there, the fix."""
        lines = []
        for number, pool in enumerate(self.cluster.pools):
            needed = {stage: groups.gpus(stage) for stage in pool.stages if groups.gpus(stage)}
            total = sum(needed.values())
            if total > pool.size:
                wanted = ", ".join(f"{stage} {gpus}" for stage, gpus in needed.items())
                lines.append(
                    f"GPUs of pool {number} ({pool.name}): {total} needed ({wanted}), {pool.nodes} x {pool.gpus} = "
                    f"{pool.size} present, {total - pool.size} missing; add "
                    f"{math.ceil((total - pool.size) / pool.gpus)} more node(s), or lower resources.<stage>.actors"
                )
        for stage, gpus in (("sampler", groups.engine_gpus), ("judge", groups.judge_gpus)):
            pool = self.cluster.pool(stage)  # type: ignore[arg-type]
            if gpus > pool.gpus:
                lines.append(
                    f"{stage}: one actor spans {gpus} GPUs, a node of its pool has {pool.gpus}: set "
                    f"resources.{stage}.gpus to {pool.gpus} or less"
                )
        lines += self._host_shortfall(groups.ranks)
        for stage, memory in self.memory(groups).items():
            if memory.missing:
                lines.append(
                    f"{stage}: {memory.missing / GIB:.1f} GiB of GPU memory missing on each device: "
                    f"{memory.arithmetic()}; {self.remedy(stage)}"
                )
        return lines

    def _host_shortfall(self, ranks: int) -> list[str]:
        pool = self.cluster.pool("trainer")
        each, here = host_bytes(self.arch, self.config, ranks) / GIB, min(ranks, pool.gpus)
        if pool.host_memory_gib is None or each * here <= pool.host_memory_gib:
            return []
        return [
            f"trainer: {each * here - pool.host_memory_gib:.1f} GiB of host memory missing on each node: "
            f"{here} ranks x {each:.1f} GiB offloaded = {each * here:.1f} GiB of {pool.host_memory_gib:g} GiB; add "
            f"ranks on other nodes (resources.trainer.actors), or set optimizer.offload=nvme"
        ]

    def remedy(self, stage: str) -> str:
        checkpointed, adapters = self.config.batching.activation_checkpointing, self.config.model.lora
        offloaded = self.config.optimizer.offload != "none"
        trainer = ["add ranks (resources.trainer.actors)", "lower batching.micro_batch_tokens"]
        trainer += [] if checkpointed else ["set batching.activation_checkpointing=true"]
        trainer += [] if adapters else ["train adapters (model.lora)"]
        trainer += [] if offloaded else ["set optimizer.offload=cpu"]
        remedies = {
            "sampler": "give an engine more GPUs (resources.sampler.gpus), or lower sampling.max_model_len",
            "judge": "give an actor more GPUs (resources.judge.gpus), or take a smaller judge",
            "reference": "an actor holds the whole model: take larger GPUs, or an objective without reference",
            "trainer": f"{', '.join(trainer[:-1])}, or {trainer[-1]}",
        }
        return remedies[stage]


def groups_of(config: RunConfig, work: Workload) -> Groups | None:
    """What the configuration's ``resources`` say; None where its groups are on CPUs.

    Raises PlanError for fractions of a GPU.
    """
    r = config.resources
    for stage in STAGES:
        gpus = getattr(r, stage).gpus
        if gpus != int(gpus):
            raise PlanError(f"resources.{stage}.gpus = {gpus:g}: a plan counts whole GPUs; set it to {math.ceil(gpus)}")
    if not (r.sampler.gpus and r.trainer.gpus):
        return None
    if r.trainer.gpus != 1:
        raise PlanError(f"resources.trainer.gpus = {r.trainer.gpus:g}: a ZeRO-3 rank has one GPU; set it to 1")
    judge_gpus = int(r.judge.gpus) if work.judging.parameters else 0
    references = r.reference.actors if config.needs_reference else 0
    return Groups(r.sampler.actors, int(r.sampler.gpus), r.judge.actors, judge_gpus, references, r.trainer.actors)
