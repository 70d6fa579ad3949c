"""Price of durability: the quickstart with ledger, checkpoints and a second copy against an iteration without.

Whole runs are alternated: one that checkpoints and copies every few steps, one that does neither before its end. Runs
of minutes on a shared machine differ by more than durability costs, so that each part is measured by itself, too: a
run's own journals written anew, record by record with every flush and fsync, and its own checkpoint saved by itself.
What holds a step up counts in full, a checkpoint by its share of the steps between two.
"""

from __future__ import annotations

import shutil
import sys
import time
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from actors.files import FileSum
from benchmarks.common import rondo, save, spread
from configs.schema import Checkpointing
from pipelines.ledger.checkpoints import Checkpoints, checkpoint_dir, damage, newest_whole, read_manifest
from pipelines.ledger.journal import Journal, read_lines
from pipelines.ledger.ledger import JOURNALS

REPETITIONS, STEPS, WARM, EVERY = 3, 14, 2, 4
PLAIN = [f"run.steps={STEPS}", "evaluation.prompts=1", "evaluation.probe=0"]


def journaling(run_dir: Path, scratch: Path) -> float:
    """Seconds a step that the run's records take to be written again, as the ledger writes them."""
    records = {name: [line.record for line in read_lines(run_dir / "ledger" / f"{name}.jsonl")] for name in JOURNALS}
    steps = sum(r["event"] == "trained" for r in records["steps"])
    scratch.mkdir()
    journals = {name: Journal(scratch / f"{name}.jsonl", token=1) for name in JOURNALS}
    started = time.perf_counter()
    for name in ("candidates", "judgements"):
        for _, group in groupby(records[name], key=lambda r: (r["step"], r["group"])):
            for record in group:
                journals[name].append(record)
            journals[name].flush()
    for record in records["scores"]:
        journals["scores"].append(record)
        journals["scores"].flush()
    for record in records["steps"]:
        if record["event"] == "prepared":
            for name in ("candidates", "judgements", "scores"):
                journals[name].append({})  # so that there is something to sync
                journals[name].commit()
        journals["steps"].append(record)
        journals["steps"].commit()
    seconds = time.perf_counter() - started
    for journal in journals.values():
        journal.close()
    return seconds / steps


def sealing(run_dir: Path, scratch: Path) -> dict[str, float]:
    """Seconds that completing a checkpoint of the run's takes in the background, and verifying one on resume."""
    found = newest_whole(run_dir)
    assert found is not None
    step, whole = found
    checkpoints = Checkpoints(scratch)
    scratch.mkdir()
    partial = checkpoints.begin(step)
    shutil.copytree(whole, partial, dirs_exist_ok=True)
    (partial / "complete.json").unlink()
    files: tuple[FileSum, ...] = read_manifest(whole).files
    started = time.perf_counter()
    checkpoints.seal(partial, step, "0.0", files, Checkpointing())
    checkpoints.settle()
    sealed = time.perf_counter() - started
    started = time.perf_counter()
    assert damage(checkpoint_dir(scratch, step)) == ""
    verified = time.perf_counter() - started
    checkpoints.close()
    return {"sealing_seconds": sealed, "verifying_seconds": verified, "gigabytes": read_manifest(whole).size / 1e9}


def main() -> None:
    iterations: dict[str, list[float]] = {"with": [], "without": []}
    held_up: list[float] = []
    journaled: list[float] = []
    parts: list[dict[str, float]] = []
    with TemporaryDirectory(prefix="rondo-bench-") as folder:
        root = Path(folder)
        kinds = {
            "with": [f"checkpoint.every={EVERY}", f"checkpoint.storage={root / 'second'}"],
            "without": ["checkpoint.every=1000"],
        }
        for repetition in range(REPETITIONS):
            for kind, knobs in kinds.items():
                run = rondo(root, f"{kind}-{repetition}", *PLAIN, *knobs)
                last = {"without": STEPS}.get(kind, 0)  # every run ends with a checkpoint: none of these here
                times = run.metrics["time/iteration"]
                iterations[kind] += [seconds for step, seconds in sorted(times.items()) if step > WARM and step != last]
                if kind == "with":
                    held_up += run.series("time/checkpoint", WARM)
                    journaled.append(journaling(run.directory, root / f"journals-{repetition}"))
                    parts.append(sealing(run.directory, root / f"checkpoints-{repetition}"))
                shutil.rmtree(run.directory)
                shutil.rmtree(root / "second", ignore_errors=True)
            print(f"repetition {repetition + 1}: {iterations}, {held_up}, {journaled}, {parts}", file=sys.stderr)
    save("durability", _result(iterations, held_up, journaled, parts))


def _result(
    iterations: dict[str, list[float]], held_up: list[float], journaled: list[float], parts: list[dict[str, float]]
) -> dict[str, Any]:
    mean = {kind: sum(values) / len(values) for kind, values in iterations.items()}
    bare = spread(iterations["without"])["median"]
    ledger, checkpoint = spread(journaled), spread(held_up)
    default = Checkpointing().every
    price = {every: (ledger["median"] + checkpoint["median"] / every) / bare for every in (EVERY, default)}
    return {
        "iteration": "16 prompts x 4 samples x 48 tokens, SmolLM2-135M",
        "iteration_seconds_without": spread(iterations["without"]),
        "iteration_seconds_with": {**spread(iterations["with"]), "every": EVERY, "copied": True},
        "whole_runs_ratio_of_means": round(mean["with"] / mean["without"], 3),
        "ledger_seconds_a_step": ledger,
        "checkpoint_seconds_held_up": checkpoint,
        "in_the_background": {name: spread([part[name] for part in parts]) for name in parts[0]},
        "price_percent": {f"checkpoint.every={every}": round(100 * share, 2) for every, share in price.items()},
        "replayed_at_most_steps": default,
    }


if __name__ == "__main__":
    main()
