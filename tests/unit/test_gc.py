"""What no run needs any more goes, what one may need stays, and a run that somebody works on is not touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines import disk
from pipelines.cli import main
from pipelines.ledger import gc
from pipelines.ledger.journal import LedgerError
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.verify import audit
from preference.types import content_id
from tests.unit.audited import audited_run


@pytest.fixture
def shared(tmp_path, monkeypatch) -> Path:
    """Shared memory that nothing else is in."""
    shared = tmp_path / "shm"
    shared.mkdir()
    for module in (disk, gc):
        monkeypatch.setattr(module, "SHARED", shared)
    return shared


@pytest.fixture
def run(tmp_path, shared) -> Path:
    run = audited_run(tmp_path / "root" / "run")
    for name in (f"rondo-{content_id(str(run))}-run-attempt-1", f"rondo-{'0' * 16}-other-attempt-1"):
        (shared / name / "weights-0.1").mkdir(parents=True)
        (shared / name / "weights-0.1" / "bucket").write_bytes(b"x" * 1000)
    (run / "checkpoints" / "step-000009.7-1.partial").mkdir()
    (run / "checkpoints" / "step-000001.damaged").mkdir()
    (run / "players" / "0.1").mkdir(parents=True)
    (run / "players" / "0.2").mkdir()
    (run / "players" / "0.2" / "manifest.json").write_text("{}")
    (run / "ledger" / "steps.jsonl.schema-1").write_bytes(b"y" * 500)
    (run / "run.json.partial").write_bytes(b"{")
    (run / "weights" / "weights-0.3").mkdir(parents=True)
    (run / "ray-train" / "t-attempt-1").mkdir(parents=True)
    (run / "reference" / "0.2").mkdir(parents=True)
    return run


GOES = {
    "checkpoints/step-000009.7-1.partial": "never completed",
    "checkpoints/step-000001.damaged": "found damaged",
    "checkpoints/step-000002": "superseded checkpoint",
    "players/0.1": "player that was never completed",
    "ledger/steps.jsonl.schema-1": "before a migration",
    "run.json.partial": "broken off",
    "weights": "published weights",
    "ray-train": "Ray Train's notes",
    "reference": "moved reference",
}


def tree(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*") if p.name not in ("lock",) and "owners" not in p.parts}


def test_a_dry_run_says_what_would_go_and_touches_nothing(run, shared):
    before = tree(run.parent.parent)
    said: list[str] = []
    freed = gc.collect(run, said.append, dry_run=True)
    for path, why in GOES.items():
        assert any(str(run / path) in line and why in line for line in said), path
    assert freed >= 1500
    assert any(line.startswith("would free 0.0 MB") for line in said)
    assert tree(run.parent.parent) == before


def test_what_is_needed_stays_and_the_rest_goes(run, shared):
    said: list[str] = []
    assert gc.collect(run, said.append) >= 1500
    left = tree(run)
    assert not left & GOES.keys()
    assert {"checkpoints/step-000003", "players/0.2", "ledger/steps.jsonl", "run.json"} <= left
    assert [p.name for p in shared.iterdir()] == [f"rondo-{'0' * 16}-other-attempt-1"]
    assert any("1 directories with weights (0.0 MB)" in line and "belong to runs elsewhere" in line for line in said)
    assert audit(run).breaches == []
    assert gc.collect(run, said.append) == 0  # there is nothing more


def test_the_newest_checkpoint_that_is_whole_stays(run):
    newest = run / "checkpoints" / "step-000003" / "weights"
    newest.write_bytes(b"changed")
    gc.collect(run, lambda _: None)
    assert (run / "checkpoints" / "step-000002").is_dir()


def test_checkpoints_that_were_measured_stay(run):
    (run / "checkpoints" / "measured.json").write_text('{"metric": "eval/win_rate", "values": {"2": 0.7}}')
    gc.collect(run, lambda _: None)
    assert (run / "checkpoints" / "step-000002").is_dir()


def test_a_running_run_is_left_alone_and_others_of_its_root_are_not(run):
    other = audited_run(run.parent.parent / "elsewhere" / "busy").rename(run.parent / "busy")
    ledger = Ledger(other)
    before = tree(other)
    said: list[str] = []
    for dry_run in (True, False):
        with pytest.raises(LedgerError, match="in use by process"):
            gc.collect(other, said.append, dry_run=dry_run)
    gc.collect(run.parent, said.append)
    assert any(line.startswith(f"{other} is left alone: ") and "in use by process" in line for line in said)
    assert tree(other) == before
    assert not (run / "weights").exists()
    ledger.close()


def test_a_directory_without_runs_is_refused(tmp_path, shared):
    done = CliRunner().invoke(main, ["gc", str(tmp_path)])
    assert done.exit_code == 1
    assert "is not a run, nor does it hold any" in done.output
