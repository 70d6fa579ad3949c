"""Run directories: journals, run.json, checkpoints and published weights, cut off, flipped and written by nobody."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from actors.weights import WeightFiles, WeightWriter
from configs.schema import Checkpointing
from pipelines.data import DataRules
from pipelines.data.runs import pairs_of_run, record_of
from pipelines.ledger.checkpoints import MARK, damage, newest_whole, read_manifest
from pipelines.ledger.gc import needless
from pipelines.ledger.journal import encode_line
from pipelines.ledger.ledger import Ledger, RunRecord, read_record, write_record
from pipelines.ledger.lock import owner_of, owners
from pipelines.ledger.status import read_status
from pipelines.ledger.verify import audit
from pipelines.look.inspect_sources import read_corpus
from preference.pairing import PairingRules, make_items
from preference.types import Version
from tests.factories import judged, prompt
from tests.fuzz.hostile import VALUES, encoded, garbled, mutants
from tests.fuzz.trial import contents, fuzzed, tried
from tests.unit.test_pair_runs import FIELDS

PROMPTS = {n: prompt(n) for n in "abcd"}
JOURNALS = ("candidates", "judgements", "scores", "steps", "evals")


def _write(path: Path) -> None:
    """A run of two steps on two prompts each; the first was trained."""
    fields = FIELDS | {
        "sampling.prompts_per_step": "2",
        "prompts.train": "nowhere.jsonl (0)",
        "pairing.min_margin": "0.0",
    }
    write_record(path, RunRecord("hash", fields, "", 1, 0))
    ledger = Ledger(path)
    for step, names in ((1, "ab"), (2, "cd")):
        groups = [judged([0.1, 0.9], name) for name in names]
        for group in groups:
            ledger.judged(step, group)
        pairs = [i for g in groups for i in make_items(g, PairingRules(min_margin=0.0, seed=3)).items]
        for pair in pairs:
            ledger.scored("initial", pair.id, tuple(torch.zeros(len(r.token_ids)).numpy() for r in pair.responses))
        ledger.prepared(step, [p.id for p in pairs])
        if step == 1:
            ledger.trained(step, "0.1", 0.5)
            ledger.evaluated(0, [groups[0].group])
            partial = ledger.checkpoints.begin(1)
            (partial / "state").mkdir()
            (partial / "state" / "rank-0").write_bytes(b"weights of the first rank")
            ledger.checkpoints.seal(partial, 1, "0.1", (), Checkpointing())
    ledger.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run")
    _write(path)
    return path


def _lines(path: Path) -> list[Any]:
    return [json.loads(line.partition(b" ")[2]) for line in path.read_bytes().splitlines()]


def _readers(run: Path) -> None:
    """Everything that reads a run without the lock; nothing of it may write."""
    before = contents(run)
    names = (run.name, "run.json", "ledger", "jsonl")
    tried("status", lambda: read_status(run), *names)
    tried("audit", lambda: audit(run), *names)
    tried("inspected run", lambda: read_corpus(run), *names)
    tried("pairs of a run", lambda: pairs_of_run(run, record_of(run), PROMPTS, 512, DataRules()), *names)
    tried("what gc would free", lambda: list(needless(run)), *names)
    assert contents(run) == before


def _opened(run: Path) -> None:
    """What resumes it: either all of it is taken, or no record is lost."""
    before = {p: p.read_bytes() for p in (run / "ledger").glob("*.jsonl")}

    def resume() -> bool:
        read_record(run)
        ledger = Ledger(run, lease_s=0.05)  # an owner of another machine is waited for
        try:
            ledger.replayable(PROMPTS)
            ledger.begun(PROMPTS)
            ledger.undecided(PROMPTS)
            ledger.evaluation(0, PROMPTS)
        finally:
            ledger.close()
        return True

    tried("opened ledger", resume, run.name, "run.json", "ledger", "jsonl")
    for path, data in before.items():
        kept = data[: data.rfind(b"\n") + 1]  # without a torn tail
        assert path.read_bytes().startswith(kept), f"{path.name} lost whole lines"


@fuzzed(0.07, st.data())
def test_journals_with_garbled_bytes(whole, tmp_path_factory, data):
    run = _copy(whole, tmp_path_factory)
    path = run / "ledger" / f"{data.draw(st.sampled_from(JOURNALS))}.jsonl"
    path.write_bytes(data.draw(garbled([path.read_bytes()])))
    _readers(run)
    _opened(run)


@fuzzed(0.09, st.data())
def test_journals_with_impossible_records(whole, tmp_path_factory, data):
    """Whole lines with right checksums, as another program or a later version may have written them."""
    run = _copy(whole, tmp_path_factory)
    path = run / "ledger" / f"{data.draw(st.sampled_from(JOURNALS))}.jsonl"
    records = data.draw(mutants([_lines(path)]))
    path.write_bytes(b"".join(_encoded(r) for r in records) if isinstance(records, list) else b"")
    _readers(run)
    _opened(run)


def _encoded(record: Any) -> bytes:
    """A line that holds any JSON value; what no ledger can hold is left out."""
    try:
        return encode_line(record, 0)
    except (UnicodeEncodeError, RecursionError):
        return b""


@fuzzed(0.05, st.data())
def test_run_records(whole, tmp_path_factory, data):
    run = _copy(whole, tmp_path_factory)
    raw = json.loads((run / "run.json").read_text())
    content = data.draw(
        mutants([raw]).map(lambda v: json.dumps(v).encode()) | garbled([(run / "run.json").read_bytes()])
    )
    (run / "run.json").write_bytes(content)
    _readers(run)
    _opened(run)


@fuzzed(0.03, st.data())
def test_checkpoints(whole, tmp_path_factory, data):
    run = _copy(whole, tmp_path_factory)
    checkpoint = run / "checkpoints" / "step-000001"
    before, known = contents(checkpoint), read_manifest(checkpoint)
    victim = checkpoint / data.draw(st.sampled_from([MARK, MARK, "state/rank-0"]))
    found = garbled([victim.read_bytes()])
    if victim.name == MARK:
        found |= encoded(mutants([json.loads(victim.read_text())]) | VALUES)
    victim.write_bytes(data.draw(found))
    wrong = tried("checkpoint", lambda: damage(checkpoint) or "whole")
    if wrong == "whole":
        assert read_manifest(checkpoint) == known
        assert {n: d for n, d in contents(checkpoint).items() if n != MARK} == {
            n: d for n, d in before.items() if n != MARK
        }, "damage went unnoticed"
    else:
        assert str(checkpoint) in str(wrong)
        assert newest_whole(run) is None
        tried("manifest", lambda: read_manifest(checkpoint), MARK)
    _readers(run)


@fuzzed(0.02, st.data())
def test_what_owners_left(whole, tmp_path_factory, data):
    run = _copy(whole, tmp_path_factory)
    victim = data.draw(st.sampled_from(sorted((run / "owners").iterdir())))
    raw = json.loads(victim.read_text())
    victim.write_bytes(data.draw(encoded(mutants([raw]) | VALUES) | garbled([victim.read_bytes()])))
    tried("owner", lambda: [str(o) for o in (*owners(run), owner_of(run))], "owners")
    _opened(run)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights-0.1"
    writer = WeightWriter(path, Version(0, 1))
    writer.add({"a": torch.arange(6.0).reshape(2, 3)})
    writer.add({"b": torch.ones(2)})
    writer.finish()
    return path


@fuzzed(0.06, st.data())
def test_published_weights(weights, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed-weights"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(weights, path)
    victim = path / data.draw(st.sampled_from(sorted(p.name for p in path.iterdir())))
    found = garbled([victim.read_bytes()])
    if victim.suffix == ".json":
        found |= encoded(mutants([json.loads(victim.read_text())]) | VALUES)
    victim.write_bytes(data.draw(found))
    before = contents(path)
    tensors = tried("published weights", lambda: dict(WeightFiles.open(path)), "weights")
    if isinstance(tensors, dict) and "a" in tensors:
        assert torch.equal(tensors["a"], torch.arange(6.0).reshape(2, 3)), "damage went unnoticed"
    assert contents(path) == before


def _copy(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.getbasetemp() / "fuzzed-run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole, run)
    return run
