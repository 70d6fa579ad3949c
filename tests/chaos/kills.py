"""Runs that are killed, a process at a time, at a stage of one's choice, and started again where it was the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.integration.conftest import BIN, ROOT, TINY, journal

# What Ray calls the processes of the actors.
ROLES = {
    "driver": "",
    "sampler": "ray::SamplerActor",
    "judge": "ray::RuleJudgeActor",
    "reference": "ray::ReferenceActor",
    "trainer worker": "ray::RayTrainWorker",
    "train controller": "ray::TrainController",
    "train run": "ray::TrainRun",
    "command stream": "ray::CommandStream",
}
STAGES = ("sample", "judge", "reference", "train", "publish", "load", "checkpoint")


def _title(process: psutil.Process) -> str:
    """What Ray calls it; empty where it is gone."""
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""


@dataclass
class Run:
    """A run of the tiny model as a process of its own, with a cluster of its own."""

    directory: Path
    overrides: Sequence[str]
    hits: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Kills by (role, stage that was under way)."""
    process: subprocess.Popen[str] | None = None
    starts: int = 0
    orphans: list[psutil.Process] = field(default_factory=list)
    """Children of drivers that were killed."""

    @property
    def stages_file(self) -> Path:
        return self.directory.parent / f"{self.directory.name}.stages"

    def start(self) -> None:
        self.starts += 1
        self.stages_file.write_text("starting")
        words = [sys.executable, "-m", "tests.chaos.driver", str(self.stages_file), str(TINY), *self.overrides]
        output = (self.directory.parent / f"{self.directory.name}-{self.starts}.log").open("w")
        env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
        self.process = subprocess.Popen(
            [*words, "--resume=auto"], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True, env=env
        )

    @property
    def log(self) -> str:
        return (self.directory.parent / f"{self.directory.name}-{self.starts}.log").read_text()

    def stages(self) -> list[str]:
        return self.stages_file.read_text().split()

    def trained(self) -> int:
        """Steps that were trained, those that were trained again included."""
        if not (self.directory / "ledger" / "steps.jsonl").exists():
            return 0
        return sum(r["event"] == "trained" for r in journal(self.directory, "steps"))

    def kill(self, role: str, stage: str, number: signal.Signals = signal.SIGKILL) -> bool:
        """Wait for ``stage`` and kill a process of ``role``; False where the run came to its end before."""
        assert self.process is not None
        while self.process.poll() is None:
            under_way = self.stages()
            victims = self._victims(role) if stage in under_way else []
            if victims and stage in self.stages():
                with suppress(psutil.NoSuchProcess):
                    victims[0].send_signal(number)
                    self.hits[role, stage] += 1
                    return True
            time.sleep(0.001)  # a poll, not a synchronisation: the stage is waited for
        return False

    def _victims(self, role: str) -> list[psutil.Process]:
        assert self.process is not None
        if role == "driver":
            return [psutil.Process(self.process.pid)]
        found = []
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                if _title(child).startswith(ROLES[role]):
                    found.append(child)
        return found

    def kill_driver(self, stage: str) -> bool:
        """Kill the driver and wait until its actors are gone; Ray's own agents may take a minute longer."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.orphans += children
        actors = [p for p in children if _title(p).startswith(tuple(t for t in ROLES.values() if t))]
        if not self.kill("driver", stage):
            return False
        self.process.wait()
        left = psutil.wait_procs(actors, timeout=60)[1]
        assert left == [], [_title(p) for p in left]
        return True

    def left(self) -> list[str]:
        """What outlived the drivers that were killed."""
        return [_title(p) for p in psutil.wait_procs(self.orphans, timeout=180)[1]]

    def finish(self, timeout: float) -> str:
        """Wait for the end; the output of the last start."""
        assert self.process is not None
        code = self.process.wait(timeout=timeout)
        assert code == 0, self.log[-5000:]
        return self.log

    def stop(self) -> None:
        """Leave nothing behind, whatever happened."""
        if self.process is None or self.process.poll() is not None:
            return
        family = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for p in family:
            with suppress(psutil.NoSuchProcess):
                p.kill()
        psutil.wait_procs(family, timeout=20)
