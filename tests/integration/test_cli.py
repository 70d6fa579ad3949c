"""As people use it: ``ray job submit``, Ctrl-C and resume, mistakes on the command line."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from pipelines.ledger import read_record
from tests.integration.conftest import BIN, ROOT, TINY, journal, losses, pairs, shared_memory_of


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


@pytest.fixture(scope="module")
def stopped(finished, overrides):
    """(run directory, exit code, output after the signal, processes left) of a run that met Ctrl-C in its step 2."""
    _, whole, _, _ = finished
    held = next(r["prompt_id"] for r in journal(whole, "judgements") if r["step"] == 2)
    process = subprocess.Popen(
        [BIN / "rondo", "run", TINY, *overrides("stopped")], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env={**os.environ, "RONDO_TEST_HOLD": held},
    )  # fmt: skip
    next(line for line in process.stdout if line.startswith("step 1/3"))
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    left = psutil.wait_procs(children, timeout=20)[1]
    return whole.parent / "stopped", process.returncode, rest, left


def test_ctrl_c_ends_cleanly(finished, stopped):
    _, whole, _, _ = finished
    run_dir, code, output, left = stopped
    assert code == 130, output
    assert "Traceback" not in output
    assert "--resume=auto" in output
    assert left == []
    assert status(run_dir.parent, run_dir).info.status == "KILLED"
    assert losses(run_dir) == {1: losses(whole)[1]}
    assert shared_memory_of(run_dir) == []


def test_ray_job_submit_goes_on_and_ends_where_the_whole_run_did(finished, stopped, overrides, head):
    config, whole, _, _ = finished
    run_dir = stopped[0]
    before = status(run_dir.parent, run_dir)
    entry = ["python", "-m", "pipelines.online", "--config", TINY.relative_to(ROOT), *overrides("stopped")]
    job = [BIN / "ray", "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", *entry, "--resume=auto"]
    done = run(*job)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "succeeded" in done.stdout
    assert pairs(run_dir) == pairs(whole)
    assert losses(run_dir) == pytest.approx(losses(whole), abs=1e-6)
    after = status(run_dir.parent, run_dir)
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    client = MlflowClient(f"sqlite:///{config.run.root}/mlflow.db")
    assert [m.step for m in client.get_metric_history(after.info.run_id, "loss")] == [1, 2, 3]
    assert shared_memory_of(run_dir) == []
    packages = list(head.directory.glob("session_*/runtime_resources/working_dir_files/*"))
    assert packages
    size = sum(f.stat().st_size for p in packages if p.is_dir() for f in p.rglob("*") if f.is_file())
    assert size < 2 * 2**20


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
