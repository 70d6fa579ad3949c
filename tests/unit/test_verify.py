"""An audit finds nothing in what the loop leaves behind, and every single thing that is done to it."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pipelines.ledger.journal import encode_line
from pipelines.ledger.verify import audit, verify
from pipelines.tracking.events import EventLog, Stepped
from pipelines.tracking.outbox import Cursor
from pipelines.tracking.tracker import CURSOR
from tests.unit.audited import STEPS, Records, audited_run, edit_record, rewrite


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return audited_run(tmp_path_factory.mktemp("root") / "run")


@pytest.fixture
def run(whole, tmp_path) -> Path:
    shutil.copytree(whole.parent, tmp_path / "root")
    run = tmp_path / "root" / "run"

    def here(records: Records) -> None:
        for r in records:
            if r["event"] == "began":
                r["tracking"] = str(run.parent / "mlflow.db")

    rewrite(run, "steps", here)
    return run


def test_what_the_loop_leaves_behind_is_in_order(run):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    said: list[str] = []
    assert verify(run, said.append) == 0
    (line,) = said
    assert line.startswith(f"{run}: no breaches in ")
    for counted in ("12 items trained", "12 fates", "12 items scored", "24 judgements bought", "2 checkpoints",
                    "3 steps in MLflow"):  # fmt: skip
        assert counted in line
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def last(records: Records, event: str) -> dict:
    return next(r for r in reversed(records) if r["event"] == event)


def first(records: Records, event: str, step: int) -> dict:
    return next(r for r in records if r["event"] == event and r["step"] == step)


def flip(run: Path) -> None:
    path = run / "ledger" / "candidates.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b"text", b"test")
    path.write_bytes(b"\n".join(lines))


def steps(change: Callable[[Records], object]) -> Callable[[Path], None]:
    return lambda run: rewrite(run, "steps", change)


def judgements(change: Callable[[Records], object]) -> Callable[[Path], None]:
    return lambda run: rewrite(run, "judgements", change)


def candidates(change: Callable[[Records], object]) -> Callable[[Path], None]:
    return lambda run: rewrite(run, "candidates", change)


def scores(change: Callable[[Records], object]) -> Callable[[Path], None]:
    return lambda run: rewrite(run, "scores", change)


def bought_again(records: Records) -> Records:
    again = {**records[0], "judgements": [{**j, "value": 7.5} for j in records[0]["judgements"]]}
    return [*records, again]


def decided_again(run: Path) -> None:
    def twice(records: Records) -> None:
        first(records, "prepared", 2)["groups"].append(first(records, "prepared", 1)["groups"][0])

    rewrite(run, "steps", twice)


def checkpoint(run: Path) -> None:
    path = next((run / "checkpoints").glob("step-*2/weights"))
    path.write_bytes(bytes(b ^ 1 for b in path.read_bytes()))


def mlflow(statement: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        with closing(sqlite3.connect(run.parent / "mlflow.db")) as db, db:
            db.execute(statement)

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (flip, r"candidates\.jsonl:2: damaged record"),
        (steps(lambda rs: [r for r in rs if (r["event"], r.get("step")) != ("prepared", 2)]),
         r"steps\.jsonl:\d+: step 2 was trained, but its data is not recorded as complete"),
        (steps(lambda rs: [*rs, last(rs, "trained")]), r"step 3 was trained a second time: .* held steps up to 3"),
        (steps(lambda rs: rs.remove(first(rs, "trained", 1))), r"step 2 was trained after step 0: 1 are missing"),
        (steps(lambda rs: last(rs, "trained").update(version="0.1")), r"0.1 after version 0.3: .* never go back"),
        (steps(lambda rs: last(rs, "trained").update(version="1.9")), r"version 1.9 was published before its step"),
        (steps(lambda rs: last(rs, "trained").update(version="x")), r"version 'x' is none"),
        (steps(lambda rs: last(rs, "began").update(done=9)), r"began with 9 steps in its weights, of which only 3"),
        (steps(lambda rs: last(rs, "began").update(incarnation=0)), r"incarnation 0 began after 0"),
        (steps(lambda rs: last(rs, "attempt").update(attempt=1) or rs[0].update(attempt=2)),
         r"attempt 1 began after attempt 2"),
        (steps(lambda rs: [*rs, first(rs, "prepared", 1)]), r"step 1 was prepared twice, first in .*steps\.jsonl:3"),
        (steps(lambda rs: [*rs, {"event": "other"}]), r"steps\.jsonl:\d+: no record of this journal"),
        (steps(lambda rs: first(rs, "prepared", 1)["pairs"].pop()), r"give 1 items it was not trained on"),
        (steps(lambda rs: first(rs, "prepared", 2)["pairs"].append(first(rs, "prepared", 1)["pairs"][0])),
         r"item \w+ is trained 2 times, first in .*steps\.jsonl:3"),
        (steps(lambda rs: first(rs, "prepared", 2)["pairs"].append("made up")), r"1 items of step 2 do not follow"),
        (steps(lambda rs: first(rs, "prepared", 1).update(fates={"trained": 3, "tied": 1})),
         r"step 1 records the fates 1 tied, 3 trained; its judgements give 4 trained"),
        (judgements(lambda rs: rs[1:]), r"candidates of 4 prompts|step 1 records the fates 4 trained; .* 3 trained"),
        (judgements(lambda rs: rs[0].update(prompt_id="x", judgements=[])), r"records the fates 4 trained"),
        (judgements(bought_again), r"judgements\.jsonl:13: judge test was asked again about .*: .* in .*:1"),
        (judgements(lambda rs: rs[0]["judgements"][0].update(candidate_id="nobody")), r"nobody, which is no cand"),
        (candidates(lambda rs: rs[0].update(group="elsewhere")), r"1 items of step 1 do not follow"),
        (candidates(lambda rs: [r for r in rs if r["group"] != rs[0]["group"]]), r"group \S+ of step 1 has no cand"),
        (candidates(lambda rs: [*rs, {**rs[0], "group": rs[2]["group"]}]), r"candidate \S+ is also in another group"),
        (decided_again, r"is decided in step 2, and was in step 1 \(.*judgements\.jsonl:\d+\): it has two fates"),
        (scores(lambda rs: rs[1:]), r"steps\.jsonl:3: item \w+ was trained without log-probs of the reference initial"),
        (scores(lambda rs: rs[0].update(reference="0.2")), r"trained without log-probs of the reference initial"),
        (scores(lambda rs: rs[0]["scores"].pop()), r"scores\.jsonl:1: item \w+ has responses of \(2, 2\) .* \(2,\)"),
        (scores(lambda rs: rs[0]["scores"][0].append(float("nan"))), r"scores\.jsonl:1: no record of this journal"),
        (scores(lambda rs: [*rs, rs[0]]), r"scores\.jsonl:13: reference initial scored item \w+ again: .*:1"),
        (checkpoint, r"complete\.json: .*weights has changed \(checksum mismatch\)"),
        (lambda run: edit_record(run, finished=STEPS), r"the run is finished, and its exported model is missing"),
        (lambda run: edit_record(run, finished=2), r"finished after step 2, but the weights hold 3 steps"),
        (lambda run: edit_record(run, logged_step=9), r"step 9 was logged, of 3 ever trained"),
        (lambda run: edit_record(run, mlflow_run="other"), r"mlflow\.db: has no run other"),
        (mlflow("DELETE FROM metrics WHERE step = 2"), r"mlflow\.db: run run-1 lacks step 2, which run had logged"),
        (mlflow("INSERT INTO metrics VALUES ('run-1', 'time/iteration', 3, 2.0)"), r"run-1 has step 3 more than once"),
        (lambda run: (run / "ledger" / "scores.jsonl").unlink(), r"scores\.jsonl: the journal cannot be read"),
    ],
)  # fmt: skip
def test_every_breach_is_found_and_placed(run, change, expected):
    change(run)
    found = audit(run)
    assert any(re.search(expected, str(b)) for b in found.breaches), "\n".join(map(str, found.breaches))
    said: list[str] = []
    assert verify(run, said.append) == 1
    assert any(line.startswith("BREACH ") and re.search(expected, line) for line in said)


def test_what_is_no_breach_is_a_note(run):
    path = run / "ledger" / "candidates.jsonl"
    path.write_bytes(path.read_bytes() + b'0bad.3 {"step": 4')
    (run / "checkpoints" / "step-000001.damaged").mkdir()
    found = audit(run)
    assert found.breaches == []
    assert any("bytes of a record whose writing was broken off" in n for n in found.notes)
    assert any("put aside" in n for n in found.notes)


def test_what_a_dead_owner_wrote_does_not_count(run):
    path = run / "ledger" / "steps.jsonl"
    path.write_bytes(path.read_bytes() + encode_line({"event": "trained", "step": 1, "version": "0.1", "loss": 1.0}, 1))
    found = audit(run)
    assert found.breaches == []
    assert any("by an owner that had lost the run" in n for n in found.notes)


def test_what_was_dropped_for_its_age_is_a_fate_of_its_step(run):
    def drop(fates: dict[str, int]) -> Callable[[Records], None]:
        return lambda records: first(records, "prepared", 2).update(stale=["too old"], fates=fates)

    rewrite(run, "steps", drop({"trained": 4, "stale": 1}))
    assert audit(run).breaches == []
    rewrite(run, "steps", drop({"trained": 4}))
    assert "its judgements give 1 stale, 4 trained" in str(audit(run).breaches[0])


def test_steps_that_wait_to_be_sent_are_no_gap_in_mlflow(run):
    log = EventLog(run)
    for step in (1, 2, 3):
        if step == 3:
            sent = log.path.stat().st_size
        log.append(Stepped(step, 0, f"0.{step}", {}, (), {}, {}))
    log.close()
    Cursor("run-1", {"metrics": sent}).write(run / CURSOR)
    edit_record(run, logged_step=3)
    mlflow("DELETE FROM metrics WHERE step = 3")(run)
    found = audit(run)
    assert found.breaches == []
    assert "step 3 wait to be sent to MLflow (rondo sync)" in found.notes
    mlflow("DELETE FROM metrics WHERE step = 1")(run)
    assert [b.message for b in audit(run).breaches] == ["run run-1 lacks step 1, which run had logged"]
    whole = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(whole[0] + whole[2].replace(b"stepped", b"stopped"))
    assert [str(b) for b in audit(run).breaches][:2] == [
        f"{log.path}:2: damaged record, or one of another version",
        f"{log.path}: lacks steps 2, 3 of the 3 that were logged",
    ]
