"""Overlap: the real loop over stages of set length, asynchronous beside synchronous, against the bound of the slowest.

Every stage is one Ray actor that sleeps; ``pipelines.loop.Loop`` drives them as it drives real ones. The bound of a
step is the slowest stage, or the way through all of them over max_staleness + 1, whichever is longer; without staleness
it is their sum. Times of stages that vary are drawn anew every step, log-normally, and the bound is that of the draws.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray

from actors.commands import CheckpointDone, PublishDone, TrainDone
from benchmarks.common import RESULTS, save, spread
from benchmarks.paced import NoEvaluation, Notes, no_metrics, some_pair
from configs.loading import validate
from configs.runs import RunConfig
from pipelines.ledger.ledger import Ledger
from pipelines.loop import Loop, Stages
from pipelines.stages import Prepared
from pipelines.timing import Stopwatch
from preference.types import Fate, Message, Prompt, Version

UNIT = 0.3  # seconds of a stage of ratio 1
STEPS, WARM = 12, 3
STALENESS = (0, 1, 2, 4)
RATIOS = (  # sample, judge, reference, train (publication and loading take a tenth of training)
    (1.0, 0.0, 0.0, 1.0),
    (2.0, 0.0, 0.0, 1.0),
    (1.0, 0.0, 0.0, 2.0),
    (1.0, 1.0, 1.0, 1.0),
    (3.0, 0.5, 0.5, 1.0),
    (1.0, 0.2, 0.5, 3.0),
    (2.0, 0.2, 1.0, 2.0),
    (1.0, 2.0, 1.0, 1.0),
)
SPREADS = (0.0, 0.3)


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the grid; seconds."""

    sample: float
    judge: float
    reference: float
    train: float
    publish: float
    staleness: int
    spread: float
    """Standard deviation of the logarithm of a step's sampling and training."""

    @property
    def way(self) -> float:
        return self.sample + self.judge + self.reference + self.train + self.publish

    @property
    def bound(self) -> float:
        """Seconds a step, of mean times."""
        if not self.staleness:
            return self.way
        slowest = max(self.sample, self.judge, self.reference, self.train + self.publish)
        return max(slowest, self.way / (self.staleness + 1))

    def draw(self, stage: str, step: int) -> float:
        mean: float = getattr(self, stage)
        if not self.spread or stage not in ("sample", "train"):
            return mean
        return mean * random.Random(f"{stage}/{step}").lognormvariate(-(self.spread**2) / 2, self.spread)


def grid(ratios: Sequence[int]) -> list[Cell]:
    cells = []
    for s, j, r, t in (RATIOS[i] for i in ratios):
        for k in STALENESS:
            for varied in SPREADS:
                cells.append(Cell(s * UNIT, j * UNIT, r * UNIT, 0.9 * t * UNIT, 0.1 * t * UNIT, k, varied))
    return cells


@ray.remote(num_cpus=0)
class Sleeper:
    def work(self, seconds: float) -> None:
        import time

        time.sleep(seconds)


class Paced:
    """Source, trainer and consumer of the loop at once, over one actor a stage."""

    ranks = 1

    def __init__(self, cell: Cell, actors: dict[str, Any]) -> None:
        self._cell, self._actors = cell, actors
        self._version = Version(0, 0)
        self._prompt = Prompt("p", (Message("user", "p"),), (1, 2, 3))

    async def _work(self, stage: str, step: int) -> None:
        if seconds := self._cell.draw(stage, step):
            await self._actors[stage].work.remote(seconds)

    async def prepare(self, step: int, watch: Stopwatch) -> Prepared:
        version = self._version
        for stage in ("sample", "judge", "reference"):
            with watch.stage(stage):
                await self._work(stage, step)
        scored = (some_pair(self._prompt, version, step),)
        return Prepared(Counter({Fate.TRAINED: 1}), scored, (), None, None, (), watch)

    def served(self, step: int, version: Version) -> None:
        pass

    async def train(self, step: int, batch: object) -> TrainDone:
        await self._work("train", step)
        return TrainDone(no_metrics(), 0.0)

    async def publish(self, version: Version, directory: Path) -> PublishDone:
        await self._work("publish", version.step)
        return PublishDone(version, str(directory), 0, 0.0, 0.0)

    async def checkpoint(self, step: int, directory: Path) -> CheckpointDone:
        return CheckpointDone(step, str(directory), 0.0, ())

    async def load(self, directory: str, version: Version) -> float:
        self._version = version
        return 0.0


def configuration(staleness: int, steps: int) -> RunConfig:
    return validate(
        RunConfig,
        {
            "run": {"name": "overlap", "root": "/tmp", "steps": steps, "max_staleness": staleness},
            "model": {"path": "/m"},
            "prompts": {"train": "/t", "heldout": "/h", "max_tokens": 64},
            "judge": {"kind": "rule", "rule": "a:b"},
            "checkpoint": {"every": 10**6},
        },
    )


def measure(cell: Cell, actors: dict[str, Any], steps: int) -> float:
    """Seconds a step, of whole rounds of max_staleness + 1 steps between a warm-up and the end of the run."""
    config, notes, paced = configuration(cell.staleness, steps), Notes(), Paced(cell, actors)
    with TemporaryDirectory(prefix="rondo-overlap-") as scratch:
        ledger = Ledger(Path(scratch))
        try:
            stages = Stages(paced, paced, None, [paced], NoEvaluation())  # type: ignore[arg-type]
            loop = Loop(
                config, steps, cell.staleness, stages, ledger, notes, Path(scratch) / "weights", Version(0, 0)
            )  # fmt: skip
            asyncio.run(loop.run(0))
        finally:
            ledger.close()
    if max(notes.ages) > cell.staleness:
        raise RuntimeError(f"a pair of age {max(notes.ages)} was trained with max_staleness = {cell.staleness}")
    first, last = span(cell.staleness, steps)
    return (notes.done[last] - notes.done[first]) / (last - first)


def span(staleness: int, steps: int) -> tuple[int, int]:
    """Indices of the steps between which is measured; the last one writes a checkpoint and is left out."""
    rounds = staleness + 1
    last = steps - 2
    return WARM + (last - WARM) % rounds, last


def drawn_bound(cell: Cell, steps: int) -> float:
    """The bound with the very times that were drawn: the recursion of the loop, without any overhead.

    prepare(s) begins when s - 1 - k is served; every stage takes the steps in order.
    """
    free = dict.fromkeys(("sample", "judge", "reference"), 0.0)
    served = [0.0] * (steps + 1)
    for step in range(1, steps + 1):
        now = served[max(0, step - 1 - cell.staleness)]
        for stage in free:
            now = free[stage] = max(now, free[stage]) + cell.draw(stage, step)
        served[step] = max(now, served[step - 1]) + cell.draw("train", step) + cell.draw("publish", step)
    first, last = span(cell.staleness, steps)
    return (served[last + 1] - served[first + 1]) / (last - first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--repetitions", type=int, default=1)
    everything = range(len(RATIOS))  # those that are measured anew
    parser.add_argument(
        "--ratios", type=int, nargs="*", default=everything, choices=everything, help="measure these anew"
    )
    options = parser.parse_args()
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        actors = {stage: Sleeper.remote() for stage in ("sample", "judge", "reference", "train", "publish")}
        ray.get([a.work.remote(0) for a in actors.values()])
        rows: list[dict[str, Any]] = []
        for cell in grid(options.ratios):
            seconds = [measure(cell, actors, options.steps) for _ in range(options.repetitions)]
            bound = drawn_bound(cell, options.steps)
            rows.append({**asdict(cell), "seconds": spread(seconds), "bound": bound, "mean_bound": cell.bound})
            rows[-1]["of_bound"] = round(bound / rows[-1]["seconds"]["median"], 4)
            print(f"{rows[-1]}", flush=True)
    finally:
        ray.shutdown()
    report(rows + others(rows), options.steps)


def others(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rest of the grid as it was measured before."""
    file, new = RESULTS / "overlap.json", [_point(r) for r in rows]
    before = json.loads(file.read_text())["grid"] if file.exists() else []
    return [r for r in before if _point(r) not in new]


def _point(row: dict[str, Any]) -> tuple[float, ...]:
    return tuple(row[f.name] for f in fields(Cell))


def report(rows: list[dict[str, Any]], steps: int) -> None:
    key = ("sample", "judge", "reference", "train", "spread")
    synchronous = {tuple(r[k] for k in key): r["seconds"]["median"] for r in rows if r["staleness"] == 0}
    for r in rows:
        r["speed_up"] = round(synchronous[tuple(r[k] for k in key)] / r["seconds"]["median"], 3)
    ahead = [r["of_bound"] for r in rows if r["staleness"]]
    save(
        "overlap",
        {
            "steps": steps,
            "unit_s": UNIT,
            "of_bound": spread(ahead),
            "below_95_percent": sum(o < 0.95 for o in ahead),
            "greatest_speed_up": max(r["speed_up"] for r in rows),
            "grid": rows,
        },
    )
    plot(rows, RESULTS / "overlap.png")


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Speed-up by staleness, a line a ratio, the bound dashed; means of constant times."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = 4
    figure, axes = plt.subplots(
        math.ceil(len(RATIOS) / columns), columns, figsize=(13, 6), sharex=True, layout="constrained"
    )
    for axis, ratio in zip(axes.flat, RATIOS, strict=True):
        mine = [r for r in rows if not r["spread"] and math.isclose(r["sample"], ratio[0] * UNIT)
                and math.isclose(r["judge"], ratio[1] * UNIT) and math.isclose(r["train"], 0.9 * ratio[3] * UNIT)
                and math.isclose(r["reference"], ratio[2] * UNIT)]  # fmt: skip
        if not mine:  # not measured yet
            continue
        sync = next(r["bound"] for r in mine if not r["staleness"])
        axis.plot([r["staleness"] for r in mine], [r["speed_up"] for r in mine], "o-", label="measured")
        axis.plot([r["staleness"] for r in mine], [sync / r["bound"] for r in mine], "k--", label="bound")
        axis.set_title("{:g} : {:g} : {:g} : {:g}".format(*ratio), fontsize=9)
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    figure.supxlabel("max_staleness")
    figure.supylabel("speed-up over max_staleness = 0")
    figure.suptitle("sample : judge : reference : train", fontsize=10)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
