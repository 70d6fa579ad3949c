"""The ledger: what was written comes back, torn and damaged records are found, two runs never share a directory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ledger.ledger import (
    Journal,
    Ledger,
    LedgerError,
    RunRecord,
    read_record,
    write_record,
)
from preference.pairing import PairingRules, make_items
from tests.factories import judged, prompt

RECORDS = st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text() | st.floats(allow_nan=False)))


@given(RECORDS, st.integers(0, 40))
def test_a_torn_tail_loses_only_the_torn_record(tmp_path_factory, records, cut):
    path = tmp_path_factory.mktemp("journal") / "j.jsonl"
    journal = Journal(path)
    for record in records:
        journal.append(record)
    journal.close()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - min(cut, len(data))])
    survived = list(Journal(path))
    assert survived == records[: len(survived)]
    if cut == 0:
        assert survived == records


def test_a_flipped_bit_is_found_and_placed(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.append({"a": 1})
    journal.append({"b": 2})
    journal.close()
    data = bytearray((tmp_path / "j").read_bytes())
    data[12] ^= 1
    (tmp_path / "j").write_bytes(data)
    with pytest.raises(LedgerError, match=r"j:1: damaged record"):
        list(Journal(tmp_path / "j"))


def test_a_prepared_step_is_replayed_exactly(tmp_path):
    prompts = {n: prompt(n) for n in ("a", "b")}
    groups = [judged([0.1, 0.7], "a"), judged([0.3, 0.3], "b")]
    (pair,) = make_items(groups[0], PairingRules()).items
    arrays = (np.array([-1.1, -2.2], np.float32), np.array([-3.3], np.float32))
    ledger = Ledger(tmp_path)
    for group in groups:
        ledger.judged(1, group)
    ledger.scored("initial", pair.id, arrays)
    ledger.prepared(1, [pair.id])
    ledger.scored("0.2", "other", arrays)
    ledger.judged(2, judged([0.5, 0.1], "a"))  # never completed
    ledger.close()

    again = Ledger(tmp_path)
    steps = again.replayable(prompts)
    assert list(steps) == [1]
    assert list(steps[1]) == groups
    assert again.prepared_steps() == {1}
    back = again.scores("initial", pair.id)
    assert [a.tolist() for a in back] == [a.tolist() for a in arrays]
    assert again.scores("0.2", "other") is not None  # paid for, though its step never came to be complete
    assert again.scores("0.2", pair.id) is None
    again.close()


def test_two_runs_never_share_a_directory(tmp_path):
    ledger = Ledger(tmp_path)
    with pytest.raises(LedgerError, match="in use by process"):
        Ledger(tmp_path)
    ledger.close()
    Ledger(tmp_path).close()


def test_run_record_roundtrip(tmp_path):
    assert read_record(tmp_path) is None
    record = RunRecord("hash", {"a": "1"}, "run", 2, 7)
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(LedgerError, match="damaged"):
        read_record(tmp_path)
