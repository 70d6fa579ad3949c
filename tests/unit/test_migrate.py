"""Ledgers of other versions: newer ones are refused, older ones read, and rewritten by whoever goes on with them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pipelines.data import DataRules
from pipelines.data.runs import pairs_of_run, record_of, steps_of
from pipelines.ledger.events import Began, history
from pipelines.ledger.gc import collect
from pipelines.ledger.journal import LedgerError, encode_line, read_lines
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.migrate import MIGRATIONS, SCHEMA, migrate, upgraded
from pipelines.ledger.record import read_record, schema_of
from pipelines.ledger.status import read_status
from pipelines.ledger.verify import audit
from tests.factories import prompt

OLD = Path(__file__).parents[1] / "data" / "ledger_1"
PROMPTS = {n: prompt(n) for n in "abcdef"}


@pytest.fixture
def run(tmp_path) -> Path:
    """A run that Rondo wrote while its ledgers had schema 1: two attempts, three steps, an answer that came late."""
    shutil.copytree(OLD, tmp_path / "old")
    return tmp_path / "old"


def files(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_there_is_a_way_from_every_schema_to_todays():
    assert list(MIGRATIONS) == list(range(1, SCHEMA))


def test_an_old_ledger_is_read_and_nothing_is_written(run):
    before = files(run)
    assert schema_of(run) == 1
    assert read_record(run).schema == SCHEMA
    told = history(steps_of(run))
    assert [(i.number, i.done, i.reached) for i in told.incarnations] == [(0, 0, 2), (1, 1, 3)]
    assert (told.done, told.replaced, told.setback_s) == (3, 1, 0.0)
    assert audit(run).breaches == []
    status = read_status(run)
    assert (status.state, status.done, status.items, status.version) == ("stopped", 3, 5, "1.3")
    assert [a.number for a in status.attempts] == [2]
    assert len(pairs_of_run(run, record_of(run), PROMPTS, 512, DataRules()).items) == 5
    assert files(run) == before


def test_going_on_with_it_rewrites_it_once_and_keeps_what_was_there(run):
    before = files(run)
    for _ in range(2):
        ledger = Ledger(run)
        assert ledger.prepared_steps() == {1, 2, 3}
        assert [len(groups) for groups in ledger.replayable(PROMPTS).values()] == [1, 3, 2]
        ledger.close()
        assert schema_of(run) == SCHEMA
    assert audit(run).breaches == []
    assert files(run)["steps.jsonl.schema-1"] == before["steps.jsonl"]
    assert {n: files(run)[n] for n in ("candidates.jsonl", "judgements.jsonl", "scores.jsonl")} == {
        n: before[n] for n in ("candidates.jsonl", "judgements.jsonl", "scores.jsonl")
    }
    said: list[str] = []
    collect(run, said.append)
    assert any("steps.jsonl.schema-1: journal as it was before a migration" in line for line in said)
    assert "steps.jsonl.schema-1" not in files(run)
    assert audit(run).breaches == []


def test_a_migration_that_was_broken_off_is_finished_by_the_next(run, monkeypatch):
    """Power fails after any of its writes; what it has rewritten is left as it is."""

    def go() -> None:
        migrate(run, 1, lambda p: (line.record for line in read_lines(p)), lambda r: encode_line(r, 0))

    shutil.copytree(run, run.with_name("whole"))
    go()
    wanted = files(run)
    for allowed in range(2):
        shutil.rmtree(run)
        shutil.copytree(run.with_name("whole"), run)
        left = [allowed]
        real = os.replace

        def replace(source, target, left=left, real=real):
            if not left[0]:
                raise OSError("power cut")
            left[0] -= 1
            real(source, target)

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", replace)
            with pytest.raises(OSError, match="power cut"):
                go()
        assert audit(run).breaches == []  # readable in between, too
        go()
        assert {n: d for n, d in files(run).items() if not n.endswith(".partial")} == wanted


def test_every_migration_leaves_what_it_has_made_unchanged(run):
    for version, changes in MIGRATIONS.items():
        for journal, change in changes.items():
            records = [line.record for line in read_lines(run / "ledger" / f"{journal}.jsonl")]
            once = list(change(records))
            assert list(change(once)) == once
            assert list(upgraded(records, journal, version)) == once
    assert [e.done for e in steps_of(run) if isinstance(e, Began)] == [0, 1]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (SCHEMA + 1, f"schema {SCHEMA + 1}, and this Rondo reads schemas up to {SCHEMA}: a newer one wrote it"),
        (0, "its schema is 0, which is no version"),
        ("2", "its schema is '2'"),
        (None, "its schema is None"),
        (True, "its schema is True"),
    ],
)
def test_what_no_rondo_or_a_newer_one_wrote_is_refused_everywhere_and_left_alone(run, schema, words):
    path = run / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": schema}))
    before = {n: d for n, d in files(run).items() if n.endswith((".jsonl", ".json"))}
    for reader in (read_record, schema_of, Ledger, read_status, audit):
        with pytest.raises(Exception, match=r"run\.json") as refused:
            reader(run)
        assert words in str(refused.value)
    with pytest.raises(LedgerError):
        Ledger(run)
    after = files(run)
    assert {n: after[n] for n in before} == before
