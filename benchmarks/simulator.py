"""Simulator: calibrated on half of what benchmarks.overlap and .control_plane measured, held to the other half.

Overlap: two numbers are fitted, the seconds that a call to an actor costs and those that a step of the loop costs
beside its stages. Control plane: the driver's seconds a prompt, and the seconds of a step that pack its batch, a
prompt. Everything else is the paced times themselves. Aim: every cell of the other half within 10%.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np

from benchmarks import control_plane
from benchmarks.common import RESULTS, save
from benchmarks.overlap import Cell, span
from pipelines.plan.pipeline import Pipeline
from pipelines.plan.simulate import Simulation
from pipelines.plan.times import Decode
from pipelines.plan.weights import WeightPath
from pipelines.plan.workload import Lengths
from preference.admission import AdmissionRules

Predict = Callable[[dict[str, Any], float, float], float]
_HOPS, _STEPS = np.linspace(0, 0.02, 11), np.linspace(0, 0.06, 13)


def overlap_period(row: dict[str, Any], hop: float, step: float) -> float:
    """Of a cell of the grid, with the very times that were drawn there."""
    cell = Cell(**{name: row[name] for name in Cell.__dataclass_fields__})
    pipeline = Pipeline(
        rules=AdmissionRules(1, cell.staleness, steps=row["steps"]),
        engines=1, token_s=Decode(0, 0, 0, 1.0), slots=1.0, prefill_s=0.0, candidates=1, lengths=Lengths(1.0, 0.0, 1),
        judges=1, judge_s=cell.judge + hop if cell.judge else 0.0,
        references=1, reference_s=cell.reference + hop if cell.reference else 0.0,
        driver_s=0.0, train_s=0.0, path=WeightPath("shm", cell.publish + hop + step, 0.0, 0.0, 1, 0.0),
    )  # fmt: skip

    def drawn(stage: str) -> Iterator[float]:
        for number in count(1):
            yield cell.draw(stage, number) + hop

    simulation = Simulation(pipeline, 0, drawn("sample"), drawn("train"))
    simulation.run()
    first, last = span(cell.staleness, row["steps"])
    return (simulation.published_at[last] - simulation.published_at[first]) / (last - first)


def control_period(row: dict[str, Any], driver: float, packing: float) -> float:
    """Of one scale of the control plane."""
    groups, prompts = row["groups"], row["prompts_per_step"]
    config = control_plane.configuration(groups, 40)
    pace = control_plane.pace(groups, config)
    pipeline = Pipeline(
        rules=AdmissionRules(prompts, control_plane.STALENESS, steps=40),
        engines=groups["sampler"], token_s=Decode(0, 0, 0, pace.sample_s / 100), slots=1e9, prefill_s=0.0,
        candidates=control_plane.CANDIDATES, lengths=Lengths(87.0, 0.0, 100),
        judges=groups["judge"], judge_s=pace.judge_s,
        references=groups["reference"], reference_s=0.7 * control_plane.STEP_S * groups["reference"] / prompts,
        driver_s=driver, train_s=pace.train_s + packing * prompts,
        path=WeightPath("shm", pace.publish_s, 0.0, 0.0, 1, pace.load_s),
    )  # fmt: skip
    return Simulation(pipeline).run().period


def errors(rows: Sequence[dict[str, Any]], predict: Predict, a: float, b: float) -> np.ndarray[Any, Any]:
    """Predicted over measured seconds a step, minus 1."""
    return np.array([predict(row, a, b) / row["measured"] - 1 for row in rows])


def calibrate(rows: Sequence[dict[str, Any]], predict: Predict, first: Any, second: Any) -> tuple[float, float]:
    """The pair of numbers with the least mean squared error: every pair is tried."""
    tried = {(a, b): float((errors(rows, predict, a, b) ** 2).mean()) for a in first for b in second}
    best = min(tried, key=lambda pair: tried[pair])
    return float(best[0]), float(best[1])


def validate(
    rows: list[dict[str, Any]], predict: Predict, first: Any, second: Any, names: tuple[str, str]
) -> dict[str, Any]:
    """Halves drawn with a fixed seed."""
    random.Random(0).shuffle(rows)
    half = len(rows) // 2 + len(rows) % 2
    a, b = calibrate(rows[:half], predict, first, second)
    found = errors(rows[half:], predict, a, b)
    worst = int(np.abs(found).argmax())
    return {
        names[0]: a,
        names[1]: b,
        "calibrated_on": half,
        "validated_on": len(found),
        "within_10_percent": int((np.abs(found) <= 0.10).sum()),
        "mean_error": round(float(found.mean()), 4),
        "mean_absolute_error": round(float(np.abs(found).mean()), 4),
        "worst": {"error": round(float(found[worst]), 4), "cell": rows[half:][worst]},
    }


def main() -> None:
    result: dict[str, Any] = {}
    grid = json.loads((RESULTS / "overlap.json").read_text())
    cells = [{**row, "measured": row["seconds"]["median"], "steps": grid["steps"]} for row in grid["grid"]]
    result["overlap"] = validate(cells, overlap_period, _HOPS, _STEPS, ("call_s", "step_s"))
    scales = json.loads((RESULTS / "control_plane.json").read_text())["scales"]
    rows = [{**row, "measured": row["seconds_per_step"]} for row in scales]
    if len(rows) > 3:  # two numbers cannot be fitted to one scale
        each = np.linspace(0, 0.004, 9)
        result["control_plane"] = validate(
            rows, control_period, each, each / 4, ("driver_s_per_prompt", "packing_s_per_prompt")
        )
    save("simulator", result)


if __name__ == "__main__":
    main()
