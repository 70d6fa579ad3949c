"""Reward against KL over beta, as figure 2 of the DPO paper: the quickstart with several betas and seeds.

Each run is evaluated on its way, so that it is a line and not a point. `python -m benchmarks.sweep [BETA...]`; the runs
lie in ~/.rondo/sweeps, and a sweep that was interrupted goes on.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from benchmarks.common import QUICKSTART, RESULTS, save
from pipelines.sweep import plan, sweep

BETAS = ("0.03", "0.1", "0.3", "1.0")
SEEDS = ("0", "1")
ROOT = Path("~/.rondo/sweeps").expanduser()


def main() -> None:
    betas = sys.argv[1:] or BETAS
    planned = plan(
        QUICKSTART,
        [
            f"objective.beta={','.join(betas)}",
            f"run.seed={','.join(SEEDS)}",
            "run.name=beta",
            f"run.root={ROOT}",
            "run.steps=12",
            "evaluation.every=3",
            "evaluation.prompts=64",
        ],
    )
    failed = sweep(planned, print)
    result = json.loads((planned.directory / "sweep.json").read_text(encoding="utf-8"))
    save("sweep", result)
    shutil.copyfile(planned.directory / "frontier.png", RESULTS / "sweep.png")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
