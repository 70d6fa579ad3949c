"""Two whole runs on one cluster at once; then one of them on an empty disk, restored from S3 for another cluster."""

import os
import shutil
import subprocess

import pytest

from pipelines.ledger.checkpoints import complete_checkpoints
from pipelines.ledger.lock import owners
from pipelines.ledger.record import read_record
from tests.integration.conftest import BIN, ROOT, TINY, journal, losses, mlflow, pairs, shared_memory_of
from tests.s3 import s3_server

STAGES = ("sampler", "judge", "reference", "trainer")
SMALL = [f"resources.{stage}.cpus=0.1" for stage in STAGES]
SMALL += ["resources.data_cpus=0.1", "evaluation.prompts=2", "evaluation.probe=0", "checkpoint.keep=1"]


@pytest.fixture(scope="module")
def server():
    with s3_server("runs") as made:
        yield made


@pytest.fixture(scope="module")
def start(head, server):
    """Begin a run on the cluster, as a user does; none outlives the tests."""
    started = []

    def begin(*words):
        env = {**os.environ, **server.environment, "RAY_ADDRESS": head.address, "PATH": f"{BIN}:{os.environ['PATH']}"}
        command = [str(BIN / "rondo"), "run", str(TINY), *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started.append(subprocess.Popen(command, cwd=ROOT, env=env, text=True, **pipes))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def side_by_side(start, overrides, finished):
    """Their directories, once both have come to their end, and what they said."""
    named = {"copied": ["checkpoint.storage=s3://runs/tests"], "beside": []}
    started = {name: start(*overrides(name, "run.steps=2", *SMALL, *more)) for name, more in named.items()}
    output = {name: process.communicate(timeout=240)[0] for name, process in started.items()}
    for name, process in started.items():
        assert process.returncode == 0, output[name][-3000:]
    return {name: finished.directory.parent / name for name in named}, output


def test_two_runs_at_once_do_not_disturb_each_other(side_by_side, finished):
    directories, output = side_by_side
    for name, run_dir in directories.items():
        assert losses(run_dir) == pytest.approx(
            {s: x for s, x in losses(finished.directory).items() if s < 3}, abs=1e-6
        )
        assert pairs(run_dir) == {s: x for s, x in pairs(finished.directory).items() if s < 3}
        assert [s for s, _ in complete_checkpoints(run_dir)] == [2]
        assert shared_memory_of(run_dir) == []
        assert mlflow(run_dir)[1].info.status == "FINISHED"
        assert "Traceback" not in output[name]
    assert "GB to s3://runs/tests/copied" in output["copied"]


def test_on_an_empty_disk_a_run_goes_on_from_its_copy_on_another_cluster(side_by_side, start, overrides, finished):
    run_dir = side_by_side[0]["copied"]
    before = read_record(run_dir)
    shutil.rmtree(run_dir)
    other = ["resources.trainer.actors=1", "resources.sampler.actors=2", "resources.reference.actors=2"]
    words = overrides("copied", "run.steps=3", *SMALL, *other, "checkpoint.storage=s3://runs/tests")
    resumed = start(*words, "--resume=must")
    output = resumed.communicate(timeout=240)[0]
    assert resumed.returncode == 0, output[-3000:]
    assert f"restoring {run_dir} from s3://runs/tests/copied" in output
    assert "resuming after step 2" in output
    assert pairs(run_dir) == pairs(finished.directory)
    assert losses(run_dir) == pytest.approx(losses(finished.directory), abs=1e-6)
    after = read_record(run_dir)
    assert (after.config_hash, after.mlflow_run, after.attempts) == (before.config_hash, before.mlflow_run, 2)
    assert {r["version_min"]["step"] for r in journal(run_dir, "candidates") if r["step"] == 3} == {2}
    assert [o.attempt for o in owners(run_dir)][-1] == 2
    assert [s for s, _ in complete_checkpoints(run_dir)] == [3]
