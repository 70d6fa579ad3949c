"""One iteration against the sum of its stages' own ceilings, stage by stage: where the time goes.

An iteration of 16 prompts x 2 samples x 48 tokens beside plain vLLM, a plain scoring forward and a bare
ZeRO-3 engine on the same prompts and packed batches, alternated. The first two steps of every repetition warm up
(DeepSpeed records its prefetch order) and are not counted, on either side. Judging, pairing, publishing and loading
are in the iteration and in no ceiling.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from actors.pool import process_env
from benchmarks.common import QUICKSTART, ROOT, STAGES, median, rondo, save, spread
from configs.loading import load_config
from configs.runs import RunConfig
from configs.schema import Group

REPETITIONS, STEPS, WARM = 3, 6, 2
ACCOUNTED = ("sampler", "reference", "trainer")


def ceiling(stage: str, group: Group, directory: Path, overrides: list[str]) -> dict[str, Any]:
    launcher = [sys.executable]
    if stage == "trainer":
        launcher = [
            str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node", str(group.actors), "--standalone",
            f"--log-dir={directory}", "--no-python", sys.executable,
        ]  # fmt: skip
    words = [*launcher, "-m", "benchmarks.ceilings", stage, str(QUICKSTART), str(directory), *overrides]
    env = {**os.environ, **process_env(group), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    if line is None:
        raise RuntimeError(f"{' '.join(words)}\n{done.stdout[-1500:]}{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return found


def main() -> None:
    overrides = [
        f"run.steps={STEPS}",
        "sampling.candidates=2",
        "evaluation.prompts=1",
        "evaluation.probe=0",
        "checkpoint.every=1000",
    ]
    groups = load_config(RunConfig, QUICKSTART, overrides).resources
    iterations: list[float] = []
    stages: dict[str, list[float]] = {stage: [] for stage in STAGES}
    alone: dict[str, list[float]] = {stage: [] for stage in ACCOUNTED}
    with TemporaryDirectory(prefix="rondo-bench-") as scratch:
        for repetition in range(REPETITIONS):
            run = rondo(Path(scratch), f"iteration-{repetition}", *overrides)
            checkpoint = run.metrics["time/checkpoint"]
            times = sorted(run.metrics["time/iteration"].items())
            iterations += [t - checkpoint.get(s, 0.0) for s, t in times if s > WARM]
            for stage in STAGES:
                stages[stage] += run.series(f"time/{stage}", WARM + 1)
            rate = run.series("tokens_per_s/sample", 1)
            sampled = [r * t for r, t in zip(rate, run.series("time/sample", 1), strict=True)]
            for stage in ACCOUNTED:
                found = ceiling(stage, getattr(groups, stage), run.directory, overrides)
                seconds = found["seconds"]
                if stage == "sampler":  # its samples are others: the time the run's number of tokens would take
                    seconds = [
                        s * mine / theirs for s, theirs, mine in zip(seconds, found["tokens"], sampled, strict=True)
                    ]
                alone[stage] += seconds[WARM:]
            print(f"repetition {repetition + 1}: {iterations}, {alone}", file=sys.stderr)
    floor = {stage: round(median(v), 3) for stage, v in alone.items()}
    save(
        "iteration",
        {
            "iteration": "16 prompts x 2 samples x 48 tokens, SmolLM2-135M",
            "rondo_seconds": spread(iterations),
            "rondo_seconds_by_stage": {s: round(median(v), 3) for s, v in stages.items() if v and s != "checkpoint"},
            "ceiling_seconds_by_stage": floor,
            "ceiling_seconds": round(sum(floor.values()), 3),
            "ratio": round(median(iterations) / sum(floor.values()), 3),
        },
    )


if __name__ == "__main__":
    main()
