"""One Ray head, one tiny model, one finished and one stopped run for all tests that need real parts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from configs.loading import load_config
from configs.runs import RunConfig
from pipelines.ledger.ledger import read_record
from preference.types import content_id
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "integration" / "tiny.yaml"
BIN = Path(sys.executable).parent
os.environ["RAY_AUTH_MODE"] = "disabled"  # the cluster of the tests listens on loopback only
os.environ.pop("RAY_ADDRESS", None)
# Ray's workers step back behind everything else by default; here that is the other test process, which never sleeps.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
JUDGE_KEY = f"canary-{uuid.uuid4().hex}"  # not in a file: jobs carry these files with them
"""A key as a cluster's nodes are given one, by their environment; test_deployed looks for it everywhere."""


@pytest.fixture(scope="session", autouse=True)
def scratch() -> Iterator[Path]:
    """For temporary files of what the tests start: who is killed leaves them (vLLM its sockets, Ray its session)."""
    directory = tempfile.mkdtemp(prefix="rondo-", dir="/tmp")  # short: sockets lie in it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", directory)
        patch.setenv("RAY_TMPDIR", directory)
        yield Path(directory)
    shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True)
class Head:
    """A local head as ``ray start`` makes it, with its dashboard."""

    address: str
    dashboard: str
    directory: Path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def free_port(*taken: int) -> int:
    """A free port below those that Ray gives to workers; test processes that run side by side look in other places."""
    first = 8300 + 400 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for port in range(first, first + 400):
        with socket.socket() as probe:
            if port not in taken and probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no free port")


@pytest.fixture(scope="session")
def head(scratch: Path) -> Iterator[Head]:
    """One head for all tests, stopped by process id."""
    directory = tempfile.mkdtemp(prefix="rondo-", dir="/tmp")  # short: Ray's sockets lie in it
    gcs = free_port()
    dashboard = free_port(gcs)
    agent = free_port(gcs, dashboard)  # which starts jobs; two heads cannot have Ray's default
    words = [str(BIN / "ray"), "start", "--head", "--node-ip-address=127.0.0.1", f"--port={gcs}"]
    words += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", "--include-dashboard=true"]
    words += ["--num-cpus=2", "--disable-usage-stats"]
    words += [f"--object-store-memory={200 * 2**20}", f"--temp-dir={directory}"]
    # as in an activated environment
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "RONDO_JUDGE_API_KEY": JUDGE_KEY}
    env["RAY_metrics_report_interval_ms"] = "2000"  # 10 s, otherwise
    started = subprocess.run(words, capture_output=True, text=True, env=env)
    assert started.returncode == 0, started.stderr
    yield Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", Path(directory))
    # Ray's client server names the address only, and outlives the process that started it.
    marks = (directory, f"127.0.0.1:{gcs}")
    ours = [p for p in psutil.process_iter() if any(mark in " ".join(command_line(p)) for mark in marks)]
    ours += [child for p in ours for child in p.children(recursive=True)]
    for p in ours:
        with suppress(psutil.NoSuchProcess):
            p.kill()
    assert psutil.wait_procs(ours, timeout=20)[1] == []
    shutil.rmtree(directory, ignore_errors=True)


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="session")
def ray_here(head):
    """This process as a driver on the head."""
    import ray

    ray.init(address=head.address, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def engines(ray_here):
    """(call, one actor, another actor) that run vLLM; importing it takes long, so all tests share them."""
    from tests.integration.engines import EngineActor

    env = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    remote = ray_here.remote(num_cpus=0, runtime_env={"env_vars": env})(EngineActor)
    one, other = remote.remote(), remote.remote()
    yield lambda ref: ray_here.get(ref, timeout=120), one, other
    ray_here.kill(one)
    ray_here.kill(other)


@pytest.fixture(scope="session")
def overrides(tiny, tmp_path_factory):
    """Overrides of tests/integration/tiny.yaml that fit this session; call with a run name."""
    root = tmp_path_factory.mktemp("runs")
    return lambda name, *more: [f"run.name={name}", f"run.root={root}", f"model.path={tiny}", *more]


def run(*words: object, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
    """A command as a user gives it, in an activated environment, at the top of the repository."""
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **env}
    return subprocess.run([*map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=env)


def in_ranks(module: str, directory: Path, counts: Sequence[int]) -> dict[int, dict[str, Any]]:
    """What the ranks of a worker module of the tests found, by how many they were; see tests/ranks.py."""
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    env["PATH"] = f"{BIN}:{env['PATH']}"  # deepspeed looks for ninja there
    with (directory / "output").open("w") as output:
        words = [sys.executable, "-W", "ignore", "-m", module, str(directory)]
        done = subprocess.run(words, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, timeout=900)
    assert done.returncode == 0, (directory / "output").read_text()[-3000:]
    return {count: json.loads((directory / f"result-{count}.json").read_text()) for count in counts}


def submit(head: Head, *words: str) -> str:
    """``ray job submit`` of a run on the tiny model, to its end; returns the job's output."""
    job = [BIN / "ray", "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", "python", "-m"]
    deadline = time.monotonic() + 120
    while True:
        done = run(*job, "pipelines.online", "--config", TINY.relative_to(ROOT), *words)
        # A head that has just been started may not have its agent yet, which is what starts jobs.
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            break
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "succeeded" in done.stdout
    return done.stdout


def links(process) -> dict[str, str]:
    """Everybody's link, from the file that a run without a terminal writes them to."""
    said = []
    for line in process.stdout:
        said.append(line)
        if "their links are in" in line:
            break
    else:
        raise AssertionError("".join(said))
    file = line.split("their links are in ")[1].split(" (")[0].strip()
    assert os.stat(file).st_mode & 0o777 == 0o600
    found = (words.strip().partition(": ") for words in Path(file).read_text().splitlines()[1:])
    return {name: url for name, _, url in found}


@dataclass(frozen=True)
class Finished:
    config: RunConfig
    directory: Path
    output: str


def whole_run(head: Head, words: Sequence[str]) -> Finished:
    """``rondo run`` of the tiny configuration with overrides, on the head, to its end."""
    config = load_config(RunConfig, TINY, list(words))
    done = run(BIN / "rondo", "run", TINY, *words, RAY_ADDRESS=head.address)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Finished(config, Path(config.run.root) / config.run.name, done.stdout)


@pytest.fixture(scope="session")
def finished(head, overrides) -> Finished:
    """One whole run on the tiny model, as a job on a cluster."""
    output = submit(head, *overrides("whole"))
    config = load_config(RunConfig, TINY, overrides("whole"))
    return Finished(config, Path(config.run.root) / "whole", output)


@dataclass(frozen=True)
class Stopped:
    directory: Path
    code: int
    output: str  # what it said after the signal
    left: list[psutil.Process]  # what outlived it


@pytest.fixture(scope="session")
def stopped(finished, overrides) -> Stopped:
    """The same run on a cluster of its own, which meets Ctrl-C while its last step is being judged."""
    held = next(r["prompt_id"] for r in journal(finished.directory, "judgements") if r["step"] == 3)
    process = subprocess.Popen(
        [BIN / "rondo", "run", TINY, *overrides("stopped")], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env={**os.environ, "RONDO_TEST_HOLD": held},
        # As from a terminal: a shell starts what it puts into the background with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout
    next(line for line in process.stdout if line.startswith("step 2/3"))
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    left = psutil.wait_procs(children, timeout=20)[1]
    return Stopped(finished.directory.parent / "stopped", process.returncode, rest, left)


def journal(run_dir: Path, name: str) -> list[dict]:
    lines = (run_dir / "ledger" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line.partition(" ")[2]) for line in lines]


def losses(run_dir: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in journal(run_dir, "steps") if r["event"] == "trained"}


def pairs(run_dir: Path) -> dict[int, list[str]]:
    return {r["step"]: r["pairs"] for r in journal(run_dir, "steps") if r["event"] == "prepared"}


def shared_memory_of(run_dir: Path) -> list[Path]:
    return list(Path("/dev/shm").glob(f"rondo-{content_id(str(run_dir))}-*"))


def mlflow(run_dir: Path) -> tuple[MlflowClient, Run]:
    record = read_record(run_dir)
    assert record is not None
    client = MlflowClient(f"sqlite:///{run_dir.parent}/mlflow.db")
    return client, client.get_run(record.mlflow_run)
