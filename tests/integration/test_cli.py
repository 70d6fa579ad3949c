"""As people use it: ``ray job submit``, Ctrl-C, mistakes on the command line."""

import json
import re

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from tests.integration.conftest import BIN, TINY, losses, mlflow, pairs, run, shared_memory_of


def test_a_job_uploads_the_code_and_nothing_else(finished, head):
    packages = list(head.directory.glob("session_latest/runtime_resources/working_dir_files/*"))
    assert packages
    files = [f for p in packages if p.is_dir() for f in p.rglob("*") if f.is_file()]
    size = sum(f.stat().st_size for f in files if "__pycache__" not in f.parts)  # compiled there, by the job
    assert size < 2 * 2**20


def test_ctrl_c_ends_cleanly(stopped):
    assert stopped.code == 130, stopped.output
    assert "Traceback" not in stopped.output
    assert "rondo resume RUN" in stopped.output
    assert stopped.left == []
    assert mlflow(stopped.directory)[1].info.status == "KILLED"
    assert shared_memory_of(stopped.directory) == []


def test_the_same_seed_gives_the_same_pairs_and_losses(finished, stopped):
    whole = losses(finished.directory)
    assert losses(stopped.directory) == {step: whole[step] for step in (1, 2)}
    assert pairs(stopped.directory) == {step: pairs(finished.directory)[step] for step in (1, 2)}


def test_whole_and_stopped_runs_pass_the_audit_and_say_how_they_stand(finished, stopped):
    for run_dir, words in ((finished.directory, ("finished", "3 of 3")), (stopped.directory, ("stopped", "2 of 3"))):
        audited = CliRunner().invoke(main, ["verify", str(run_dir)])
        assert audited.exit_code == 0, audited.output
        assert "no breaches" in audited.output
        assert " items scored" in audited.output
        assert " steps in MLflow" in audited.output
        told = CliRunner().invoke(main, ["status", str(run_dir)]).output
        assert all(word in told for word in words), told
        assert "told to stop" in told or "finished" in told
    kept = CliRunner().invoke(main, ["gc", str(finished.directory), "--dry-run"])
    assert "superseded checkpoint" in kept.output


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
    # In this process: what an interpreter of its own would add is two seconds.
    done = CliRunner().invoke(main, ["run", str(TINY), *overrides("mistake"), *more])
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit), done.exception
    for word in words:
        assert word in done.output


def test_an_existing_run_is_not_overwritten_and_not_continued_with_another_configuration(finished, overrides):
    refused = run(BIN / "rondo", "run", TINY, *overrides("whole"))
    assert refused.returncode == 1
    assert "--resume=auto" in refused.stderr
    refused = run(BIN / "rondo", "run", TINY, *overrides("whole", "objective.beta=0.5"), "--resume=auto")
    assert refused.returncode == 1
    assert "objective.beta: 0.1 -> 0.5" in refused.stderr


def test_export_command(finished, tmp_path):
    done = run(BIN / "rondo", "export", finished.directory, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    assert re.search("exported to", done.stdout)
