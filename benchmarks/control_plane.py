"""Control plane: what driving 64 samplers, 16 judges, 16 reference actors and 8 trainer ranks costs, and more of them.

The driver is the real one: loop, source, ledger, packing, sampler pool, reference pool, command stream. Only what would
compute sleeps instead, in real Ray actors of the same interface. Payloads are real: token ids and log-probs of every
candidate, packed cells, a share of the batch for every rank. Reported: seconds a step against the paced second, driver
CPU, bytes that pass through the driver, latency of every hop (from the driver's call to the actor's start, and from its
end to the driver's receipt), and all of it over the number of actors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import ray

import actors.reference
import actors.sampler
import actors.trainer_group
from actors.faults import Faults
from actors.pool import Crew
from actors.reference import ReferencePool
from actors.sampler import SamplerPool
from actors.trainer_group import TrainerGroup
from benchmarks.common import RESULTS, save
from benchmarks.paced import NoEvaluation, Notes, Pace, PacedJudges, PacedReference, PacedSampler, PacedTrainRun
from configs.loading import validate
from configs.runs import RunConfig
from pipelines.ledger.ledger import Ledger
from pipelines.loop import Loop, Stages
from pipelines.online import OnlineSource
from pipelines.prompts import PromptSet
from pipelines.scoring import Scorer
from preference.types import Message, Prompt, Version

FULL = {"sampler": 64, "judge": 16, "reference": 16, "trainer": 8}
SCALES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
STEPS, WARM, STALENESS = 16, 4, 2
PROMPTS_PER_SAMPLER, CANDIDATES, TOKENS, PROMPT_TOKENS = 4, 4, 128, 64
ACTOR_BYTES = 130e6  # of one paced actor, until it has been measured
STEP_S = 1.0
CELL_TOKENS = 2048


def configuration(groups: dict[str, int], steps: int) -> RunConfig:
    plain = {"cpus": 0.001, "threads": 1}
    return validate(
        RunConfig,
        {
            "run": {"name": "control-plane", "root": "/tmp", "steps": steps, "max_staleness": STALENESS},
            "model": {"path": "/none"},
            "prompts": {"train": "/t", "heldout": "/h", "max_tokens": PROMPT_TOKENS},
            "sampling": {
                "prompts_per_step": groups["sampler"] * PROMPTS_PER_SAMPLER, "candidates": CANDIDATES,
                "max_tokens": TOKENS, "max_model_len": PROMPT_TOKENS + TOKENS,
            },
            "judge": {"kind": "rule", "rule": "a:b"},
            "batching": {"micro_batch_tokens": CELL_TOKENS},
            "evaluation": {"probe": 0},
            "checkpoint": {"every": 10**6},
            "deadlines": {"start_s": 1800},
            "resources": {stage: {**plain, "actors": n} for stage, n in groups.items()},
        },
    )  # fmt: skip


def pace(groups: dict[str, int], config: RunConfig) -> Pace:
    """Every stage takes 0.9 s of a step or less, the trainer with publication and loading the whole second."""
    prompts = config.sampling.prompts_per_step
    cells = max(groups["trainer"], -(-prompts * (PROMPT_TOKENS + 2 * TOKENS) // CELL_TOKENS))
    return Pace(
        sample_s=0.9 * STEP_S,
        judge_s=0.8 * STEP_S * groups["judge"] / prompts,
        reference_s=0.7 * STEP_S * groups["reference"] / cells,
        train_s=0.9 * STEP_S,
        publish_s=0.05 * STEP_S,
        load_s=0.05 * STEP_S,
        tokens=TOKENS,
    )


class Hops:
    """When the driver called which actor and had its answer: stands around ``Crew.call``."""

    def __init__(self) -> None:
        self.calls: dict[tuple[str, int, str], list[tuple[float, float]]] = defaultdict(list)
        self._call = Crew.call

    def __enter__(self) -> Hops:
        original, calls = self._call, self.calls

        async def timed(
            crew: Any, index: int, what: str, submit: Callable[[Any], Any], seconds: float | None = None
        ) -> Any:
            sent = 0.0

            def stamped(actor: Any) -> Any:
                nonlocal sent
                sent = time.time()
                return submit(actor)

            answer = await original(crew, index, what, stamped, seconds)
            calls[crew._stage, index, what.partition(" ")[0]].append((sent, time.time()))
            return answer

        Crew.call = timed  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Crew.call = self._call  # type: ignore[method-assign]

    def latencies(self, log_dir: Path) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
        """Milliseconds there and back by hop, and bytes a hop moved in all."""
        found: dict[str, list[float]] = defaultdict(list)
        moved: dict[str, float] = defaultdict(float)
        for file in sorted(log_dir.glob("*.calls")):
            stage, _, number = file.stem.rpartition("-")
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            free = 0.0
            seen: dict[str, int] = defaultdict(int)
            for what, started, ended, given, returned in lines:
                calls = self.calls.get((stage, int(number), what), [])
                nth = seen[what]
                seen[what] += 1
                moved[f"{stage}.{what}"] += given + returned
                if nth < len(calls):
                    sent, received = calls[nth]
                    # A call that was sent before the actor was done with another one waited for that, not for a hop.
                    found[f"{stage}.{what}"].append(1000 * (started - max(sent, free) + received - ended))
                free = ended
        shown = {
            hop: {"p50": round(float(np.percentile(ms, 50)), 2), "p99": round(float(np.percentile(ms, 99)), 2)}
            for hop, ms in sorted(found.items())
        }
        return shown, dict(moved)


async def run(config: RunConfig, directory: Path, notes: Notes) -> dict[str, Any]:
    log_dir, steps = directory / "logs", config.run.steps
    faults = Faults(config.recovery)
    ledger = Ledger(directory)
    trainer = TrainerGroup(config, steps, directory, "paced", "", faults)
    sampler = SamplerPool(config, log_dir, faults)
    judges = PacedJudges(config, log_dir, faults)
    reference = ReferencePool(config, directory, log_dir, faults)
    try:
        began, free = time.monotonic(), psutil.virtual_memory().available
        await asyncio.gather(sampler.ready(), judges.ready(), reference.ready())
        await trainer.ready()
        started = time.monotonic() - began
        taken = free - psutil.virtual_memory().available
        prompts = PromptSet({f"p{i:06}": _prompt(i) for i in range(4 * config.sampling.prompts_per_step)}, ())
        scorer = Scorer(config, reference, trainer.ranks, ledger, notes)
        evaluation: Any = NoEvaluation()
        source = OnlineSource(config, prompts, evaluation, sampler, judges, scorer, ledger, notes)
        stages = Stages(source, trainer, reference, [sampler], evaluation)
        loop = Loop(config, steps, STALENESS, stages, ledger, notes, directory / "weights", Version(0, 0))
        process = psutil.Process()
        before, at = process.cpu_times(), time.monotonic()
        await loop.run(0)
        after, ended = process.cpu_times(), time.monotonic()
        cpu = after.user + after.system - before.user - before.system
        return {
            "start_s": started,
            "taken_bytes": taken,
            "driver_cpu_s": cpu / steps,
            "driver_busy": cpu / (ended - at),
        }
    finally:
        await trainer.close()
        sampler.close()
        judges.close()
        reference.close()
        ledger.close()


def _prompt(number: int) -> Prompt:
    return Prompt(f"p{number:06}", (Message("user", f"say {number}"),), tuple(range(5, 5 + PROMPT_TOKENS)))


def measure(scale: float, steps: int) -> dict[str, Any]:
    groups = {stage: max(1, round(n * scale)) for stage, n in FULL.items()}
    config, notes = configuration(groups, steps), Notes()
    total = sum(groups.values()) + 3
    with TemporaryDirectory(prefix="rondo-control-") as scratch, Hops() as hops:
        directory = Path(scratch)
        pace(groups, config).write(directory / "logs")
        found = asyncio.run(run(config, directory, notes))
        latencies, moved = hops.latencies(directory / "logs")
    first, last = WARM, steps - 2
    seconds = (notes.done[last] - notes.done[first]) / (last - first)
    pairs = sum(notes.pairs[first + 1 : last + 1]) / (last - first)
    return {
        "groups": groups,
        "actors": total,
        "seconds_per_step": round(seconds, 4),
        "overhead": round(seconds / STEP_S - 1, 4),
        "pairs_per_s": round(pairs / seconds, 1),
        "prompts_per_step": config.sampling.prompts_per_step,
        "driver_cpu_s_per_step": round(found["driver_cpu_s"], 3),
        "driver_cpu_s_per_prompt": round(found["driver_cpu_s"] / config.sampling.prompts_per_step, 5),
        "driver_busy": round(found["driver_busy"], 3),
        "start_s": round(found["start_s"], 1),
        "mb_per_actor": round(found["taken_bytes"] / total / 1e6, 1),
        "kb_through_driver_per_step": {hop: round(size / 1e3 / steps, 1) for hop, size in sorted(moved.items())},
        "hop_ms": latencies,
        "ages": dict(sorted(notes.ages.items())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scales", type=float, nargs="*", default=SCALES, help="1: the full number of actors")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    actors.sampler.SamplerActor = PacedSampler  # type: ignore[assignment,misc]
    actors.reference.ReferenceActor = PacedReference  # type: ignore[assignment,misc]
    actors.trainer_group.TrainRun = PacedTrainRun
    ray.init(num_cpus=64, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    rows = []
    try:
        for scale in options.scales:
            each = max([ACTOR_BYTES, *(1e6 * r["mb_per_actor"] for r in rows)])
            need = each * sum(FULL.values()) * scale
            free = psutil.virtual_memory().available
            if need > 0.8 * free:
                print(f"scale {scale:g}: about {need / 1e9:.1f} GB for its actors, {free / 1e9:.1f} GB free: left out")
                continue
            rows.append({"scale": scale, **measure(scale, options.steps)})
            print(json.dumps(rows[-1]), flush=True)
    finally:
        ray.shutdown()
    save("control_plane", {"paced_step_s": STEP_S, "steps": options.steps, "max_staleness": STALENESS, "scales": rows})
    plot(rows, RESULTS / "control_plane.png")


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    actors_ = [r["actors"] for r in rows]
    left.plot(actors_, [1000 * r["driver_cpu_s_per_step"] / r["actors"] for r in rows], "o-")
    left.set(xlabel="actors", ylabel="driver CPU a step and actor, ms", ylim=(0, None))
    right.plot(actors_, [100 * r["overhead"] for r in rows], "o-")
    right.set(xlabel="actors", ylabel="over the paced second, %")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
