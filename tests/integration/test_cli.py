"""As people use it: ``ray job submit``, Ctrl-C and resume, mistakes on the command line."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from pipelines.ledger import read_record
from tests.integration.conftest import ROOT, TINY, journal, losses, pairs

BIN = Path(sys.executable).parent


def run(*words, timeout=300, **env):
    return subprocess.run(
        [*map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **env},  # as in an activated environment
    )


def status(root, run_dir):
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    return client.get_run(read_record(run_dir).mlflow_run)


def free_port():
    """A free port below those that Ray gives to workers."""
    for port in range(8300, 9900):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no free port")


@pytest.fixture
def head(ray_here):
    """(address, directory) of a local head with its dashboard, started and stopped by process id."""
    import ray

    ray.shutdown()  # two clusters at once would not fit two cores
    directory = tempfile.mkdtemp(prefix="rondo-", dir="/tmp")  # short: Ray's sockets lie in it
    before = set(psutil.pids())
    port = free_port()
    words = [BIN / "ray", "start", "--head", "--port=0", f"--dashboard-port={port}", "--num-cpus=2"]
    words += ["--include-dashboard=true", "--disable-usage-stats", f"--temp-dir={directory}"]
    started = run(*words, RAY_AUTH_MODE="disabled")
    assert started.returncode == 0, started.stderr
    yield f"http://127.0.0.1:{port}", Path(directory)
    ours = [p for p in psutil.process_iter(["name", "cmdline"]) if p.pid not in before]
    for p in ours:
        if directory in " ".join(p.info["cmdline"] or []):
            p.terminate()
    psutil.wait_procs(ours, timeout=20)
    shutil.rmtree(directory, ignore_errors=True)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def test_ray_job_submit_gives_the_same_pairs_and_losses(finished, overrides, head):
    address, directory = head
    config, run_dir, _, _ = finished
    entry = ["python", "-m", "pipelines.online", "--config", TINY.relative_to(ROOT), *overrides("submitted")]
    done = run(
        BIN / "ray", "job", "submit", "--address", address, "--working-dir", ".", "--", *entry, RAY_AUTH_MODE="disabled"
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "succeeded" in done.stdout
    submitted = Path(config.run.root) / "submitted"
    assert pairs(submitted) == pairs(run_dir)
    assert losses(submitted) == losses(run_dir)
    packages = list(directory.glob("session_*/runtime_resources/working_dir_files/*"))
    assert packages
    size = sum(f.stat().st_size for p in packages if p.is_dir() for f in p.rglob("*") if f.is_file())
    assert size < 2 * 2**20


def test_ctrl_c_ends_cleanly_and_resume_ends_where_the_whole_run_did(finished, overrides):
    config, whole, _, _ = finished
    words = [BIN / "rondo", "run", TINY, *overrides("stopped")]
    held = next(r["prompt_id"] for r in journal(whole, "judgements") if r["step"] == 2)
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "RONDO_TEST_HOLD": held},
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step 1/3"):
            process.send_signal(signal.SIGINT)
            break
    children = psutil.Process(process.pid).children(recursive=True)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130, "".join(lines) + rest
    assert "Traceback" not in rest
    assert psutil.wait_procs(children, timeout=20)[1] == []
    stopped = Path(config.run.root) / "stopped"
    before = status(config.run.root, stopped)
    assert before.info.status == "KILLED"
    kept = losses(stopped)
    assert kept[1] == losses(whole)[1]

    again = run(BIN / "rondo", "run", TINY, *overrides("stopped"), "--resume=auto")
    assert again.returncode == 0, again.stdout + again.stderr
    assert pairs(stopped) == pairs(whole)
    assert losses(stopped) == pytest.approx(losses(whole), abs=1e-6)
    after = status(config.run.root, stopped)
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    client = MlflowClient(f"sqlite:///{config.run.root}/mlflow.db")
    assert [m.step for m in client.get_metric_history(after.info.run_id, "loss")] == [1, 2, 3]
    assert not [p for p in Path("/dev/shm").glob("rondo-*") if "stopped" in p.name]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["objective.bta=1"], ["objective.bta", "did you mean 'beta'"]),
        (["model.path=/does/not/exist"], ["model", "/does/not/exist"]),
        (["prompts.train={tmp}/empty.jsonl"], ["empty.jsonl", "holds no prompts"]),
        (["prompts.train={tmp}/bad.jsonl"], ["bad.jsonl:2", '"prompt" and "messages"']),
        (["prompts.train={tmp}/twice.jsonl"], ["twice.jsonl:2", "'a'", "line 1"]),
        (["run.min_free_disk_gb=1000000"], ["disk", "min_free_disk_gb"]),
        (["resources.sampler.cpus=99"], ["CPU", "99", "missing"]),
        (["evaluation.prompts=5000"], ["evaluation.prompts = 5000", "lower"]),
        (["--resume=must"], ["holds no run"]),
    ],
)
def test_mistakes_stop_at_once_with_a_message(overrides, tmp_path, more, words):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('{"id": "a", "prompt": "x"}\n{"id": "b"}\n')
    (tmp_path / "twice.jsonl").write_text('{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}\n')
    more = [m.replace("{tmp}", str(tmp_path)) for m in more]
    done = run(BIN / "rondo", "run", TINY, *overrides("mistake"), *more, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_an_existing_run_is_not_overwritten_and_not_continued_with_another_configuration(finished, overrides):
    refused = run(BIN / "rondo", "run", TINY, *overrides("whole"))
    assert refused.returncode == 1
    assert "--resume=auto" in refused.stderr
    refused = run(BIN / "rondo", "run", TINY, *overrides("whole", "objective.beta=0.5"), "--resume=auto")
    assert refused.returncode == 1
    assert "objective.beta: 0.1 -> 0.5" in refused.stderr


def test_export_command(finished, tmp_path):
    _, run_dir, _, _ = finished
    done = run(BIN / "rondo", "export", run_dir, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    assert re.search("exported to", done.stdout)
