"""The quickstart as `make demo` runs it: wall time, peak memory, held-out win rates and KL, stage by stage."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common import STAGES, rondo, save


def main() -> None:
    with TemporaryDirectory(prefix="rondo-bench-") as scratch:
        run = rondo(Path(scratch), "demo")
        last = {name: values[max(values)] for name, values in run.metrics.items()}
        evaluation = {k: round(v, 4) for k, v in last.items() if k.startswith("eval/")}
        save(
            "demo",
            {
                "seconds": round(run.seconds, 1),
                "peak_memory_gb": round(run.peak_gb, 2),
                "evaluation": evaluation,
                "score_by_step": [round(v, 3) for v in run.series("objective/scores", 1)],
                "kl_by_step": [round(v, 2) for v in run.series("objective/kl", 1)],
                "seconds_by_stage": {s: round(sum(run.series(f"time/{s}", 1)), 1) for s in STAGES},
                "seconds_of_iterations": [round(v, 1) for v in run.series("time/iteration", 1)],
            },
        )
    print(json.dumps({"claims": {"<= 480 s": run.seconds <= 480, "<= 12 GB": run.peak_gb <= 12}}))


if __name__ == "__main__":
    main()
