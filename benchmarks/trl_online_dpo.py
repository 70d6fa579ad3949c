"""One iteration beside TRL 1.16's OnlineDPOTrainer: 16 prompts x 2 samples x 48 tokens, alternated in one run.

Both sides: SmolLM2-135M, the quickstart's training prompts, VADER, DPO with beta 0.1, fp32 master weights and bf16
compute, all cores of the machine. TRL lives in an environment of its own, made on first use (.venv-trl). The first
step of every repetition warms up and is not counted. Rondo's iteration is everything from prompts to samplers serving
the new weights; held-out probing and checkpoints, which TRL has no counterpart of, are off.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common import ROOT, STAGES, median, rondo, save, spread
from configs.loading import load_config
from configs.runs import RunConfig

REPETITIONS, STEPS = 3, 5
ENVIRONMENT = ROOT / ".venv-trl"
REQUIREMENTS = ROOT / "benchmarks" / "trl-requirements.txt"


def environment() -> Path:
    """TRL's Python, installed on first use with the torch that Rondo runs on."""
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "ready").exists():
        print("making TRL's environment (.venv-trl)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        torch = subprocess.run([*pip, "torch==2.13.0+cpu"], check=False, capture_output=True)
        if torch.returncode:
            subprocess.run([*pip, "torch==2.13.0", "--index-url", "https://download.pytorch.org/whl/cpu"], check=True)
        subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
        (ENVIRONMENT / "ready").touch()
    return python


def trl(python: Path, scratch: Path) -> dict[str, list[float]]:
    config = load_config(RunConfig, "configs/quickstart.yaml", [])
    settings = {
        "model": config.model.path,
        "prompts": config.prompts.train,
        "prompts_per_step": config.sampling.prompts_per_step,
        "max_tokens": config.sampling.max_tokens,
        "beta": 0.1,
        "lr": config.optimizer.lr,
        "steps": STEPS,
        "seed": 0,
        "threads": os.cpu_count(),
        "scratch": str(scratch / "trl"),
    }
    words = [str(python), str(ROOT / "benchmarks" / "trl_worker.py"), json.dumps(settings)]
    env = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count()), "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    result: dict[str, list[float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    python = environment()
    ours: list[float] = []
    theirs: list[float] = []
    stages: dict[str, list[float]] = {stage: [] for stage in STAGES}
    with TemporaryDirectory(prefix="rondo-bench-") as scratch:
        for repetition in range(REPETITIONS):
            run = rondo(
                Path(scratch), f"trl-{repetition}", f"run.steps={STEPS}", "sampling.candidates=2",
                "evaluation.prompts=1", "evaluation.probe=0", "checkpoint.every=1000",
            )  # fmt: skip
            # The last step also writes the run's final checkpoint.
            checkpoint = run.metrics["time/checkpoint"]
            times = {s: t - checkpoint.get(s, 0.0) for s, t in run.metrics["time/iteration"].items()}
            ours += [t for s, t in sorted(times.items()) if s > 1]
            for stage in STAGES:
                stages[stage] += run.series(f"time/{stage}", 2)
            result = trl(python, Path(scratch))
            theirs += result["seconds"][1:]
            print(f"repetition {repetition + 1}: rondo {ours[1 - STEPS :]}, trl {theirs[1 - STEPS :]}", file=sys.stderr)
    save(
        "trl_online_dpo",
        {
            "iteration": "16 prompts x 2 samples x 48 tokens, SmolLM2-135M",
            "rondo_seconds": spread(ours),
            "rondo_seconds_by_stage": {s: round(median(v), 3) for s, v in stages.items() if v and s != "checkpoint"},
            "trl_seconds": spread(theirs),
            "speedup": round(median(theirs) / median(ours), 3),
        },
    )


if __name__ == "__main__":
    main()
