"""An earlier run's ledger becomes the pairs that it trained on: ids and log-probs as sampled, nothing written."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipelines.data import DataError, DataRules, Reason
from pipelines.data.runs import finished_run, pairs_of_run, prompt_file, recorded_rules, refuse_other_tokenizer
from pipelines.ledger.ledger import Ledger, RunRecord, write_record
from preference.pairing import PairingRules, make_items
from preference.types import Candidate, Item, JudgedGroup, JudgeFailure, Outcome, Pair
from tests.factories import JUDGE, judged, prompt
from tests.tiny import _tokenizer

FIELDS = {
    "run.seed": "3",
    "pairing.strategy": "best_vs_worst",
    "pairing.min_margin": "0.1",
    "sampling.missing_eos": "allow",
    "sampling.missing_eos_penalty": "1.0",
}
RULES = PairingRules(min_margin=0.1, seed=3)
PROMPTS = {n: prompt(n) for n in "abcd"}


def failed(name: str) -> JudgedGroup:
    group = judged([None, None], name).group
    return JudgedGroup(group, (JudgeFailure(tuple(c.id for c in group.candidates), Outcome.FAILED, "boom", JUDGE),))


def pairs(groups: list[JudgedGroup]) -> list[Pair]:
    return [item for g in groups for item in make_items(g, RULES).items if isinstance(item, Pair)]


def run(
    path: Path,
    steps: dict[int, list[JudgedGroup]],
    prepared: int = 99,
    trained: int = 99,
    fields: dict[str, str] = FIELDS,
    items: Sequence[Item] | None = None,
) -> RunRecord:
    """A run directory with these judged groups; steps up to ``prepared`` and ``trained`` got that far."""
    path.mkdir()
    record = RunRecord("hash", dict(fields), "", 1, 0)
    write_record(path, record)
    ledger = Ledger(path)
    for step, groups in steps.items():
        for group in groups:
            ledger.judged(step, group)
        if step <= prepared:
            ledger.prepared(step, [p.id for p in (items or pairs(groups))])
        if step <= trained:
            ledger.trained(step, f"0.{step}", 0.5)
    ledger.close()
    return record


def files(path: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_trained_pairs_come_back_as_they_were_sampled(tmp_path):
    steps = {
        1: [judged([0.1, 0.9], "a"), judged([0.5, 0.55], "b"), failed("c")],
        2: [judged([0.9, 0.2, 0.4], "a", first_token=30), judged([0.0, 1.0], "d")],
        3: [judged([0.0, 1.0], "b")],
    }
    record = run(tmp_path / "run", steps, prepared=2, trained=2)
    before = files(tmp_path / "run")
    items = pairs_of_run(tmp_path / "run", record, PROMPTS, 512, DataRules())
    assert list(items.items) == pairs(steps[1]) + pairs(steps[2])
    assert all(isinstance(r, Candidate) and r.logprobs for i in items.items for r in i.responses)
    report = items.report
    assert (items.kind, report.total, report.kept) == ("pairs", 6, 3)
    assert {r: t.count for r, t in report.dropped.items()} == {
        Reason.TIE: 1,
        Reason.JUDGE_FAILED: 1,
        Reason.NOT_TRAINED: 1,
    }
    assert report.dropped[Reason.TIE].first == ("run: step 1, prompt b",)
    assert files(tmp_path / "run") == before


def test_all_of_a_prompts_items_come_back_labels_and_ties_too(tmp_path):
    group = judged([0.1, 0.9, 0.5, 0.5], "a")
    cases = {
        "pairs": ({"pairing.strategy": "all_pairs", "pairing.max_pairs": "None", "pairing.ties": "keep"}, 6),
        "labels": ({"pairing.strategy": "labels", "pairing.threshold": "0.45", "pairing.neutral_band": "0.01"}, 4),
    }
    for kind, (knobs, count) in cases.items():
        fields = FIELDS | knobs
        items = make_items(group, recorded_rules(RunRecord("hash", fields, "", 1, 0))).items
        assert len(items) == count
        record = run(tmp_path / kind, {1: [group]}, fields=fields, items=items)
        loaded = pairs_of_run(tmp_path / kind, record, PROMPTS, 512, DataRules())
        assert loaded.items == items
        assert (loaded.kind, loaded.report.kept) == (kind, count)


def test_limits_drop_but_never_cut(tmp_path):
    record = run(tmp_path / "run", {1: [judged([0.1, 0.9], "a", tokens=5), judged([0.1, 0.9], "b")]})
    rules = DataRules(max_response_tokens=3, truncation="keep_start")
    items = pairs_of_run(tmp_path / "run", record, PROMPTS, 512, rules)
    assert [i.prompt.id for i in items.items] == ["b"]
    assert items.report.dropped[Reason.RESPONSE_TOO_LONG].count == 1
    items = pairs_of_run(tmp_path / "run", record, PROMPTS, 13, DataRules())
    assert items.report.dropped[Reason.OUT_OF_VOCABULARY].count == 1


def test_a_step_sampled_again_counts_as_it_was_last(tmp_path):
    lost, again = judged([0.9, 0.1], "a"), judged([0.1, 0.9], "a", first_token=50)
    record = run(tmp_path / "run", {1: [lost]}, prepared=0, trained=0)
    ledger = Ledger(tmp_path / "run")
    ledger.judged(1, again)
    ledger.prepared(1, [p.id for p in pairs([again])])
    ledger.trained(1, "0.1", 0.5)
    ledger.close()
    items = pairs_of_run(tmp_path / "run", record, PROMPTS, 512, DataRules())
    assert list(items.items) == pairs([again])
    assert items.report.total == 1


def test_a_torn_tail_is_passed_over_and_damage_is_named(tmp_path):
    record = run(tmp_path / "run", {1: [judged([0.1, 0.9], "a")]})
    journal = tmp_path / "run" / "ledger" / "candidates.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'1234abcd {"step": 2, "id')
    assert pairs_of_run(tmp_path / "run", record, PROMPTS, 512, DataRules()).report.kept == 1
    journal.write_bytes(whole.replace(b"text 1", b"text 9"))
    with pytest.raises(DataError, match=r"candidates.jsonl:2: damaged record"):
        pairs_of_run(tmp_path / "run", record, PROMPTS, 512, DataRules())


def test_other_prompts_other_rules_and_unknown_fields_are_refused(tmp_path):
    record = run(tmp_path / "run", {1: [judged([0.1, 0.9, 0.5], "a")]})
    with pytest.raises(DataError, match=r"1 of its prompts are not among the prompts given: a"):
        pairs_of_run(tmp_path / "run", record, {"b": prompt("b")}, 512, DataRules())
    record.fields["pairing.min_margin"] = "5"
    with pytest.raises(DataError, match=r"step 1 was trained on 1 pairs, 0 are found again"):
        pairs_of_run(tmp_path / "run", record, PROMPTS, 512, DataRules())
    record.fields["pairing.strategy"] = "other"
    with pytest.raises(DataError, match=r"pairing.strategy other"):
        recorded_rules(record)
    del record.fields["run.seed"]
    record.fields["pairing.strategy"] = "random"
    with pytest.raises(DataError, match=r"records no run.seed"):
        recorded_rules(record)


def test_only_a_finished_run_is_read(tmp_path):
    with pytest.raises(DataError, match="has no run\.json"):
        finished_run(tmp_path)
    record = run(tmp_path / "run", {1: [judged([0.1, 0.9], "a")]})
    assert finished_run(tmp_path / "run") == record
    ledger = Ledger(tmp_path / "run")
    with pytest.raises(DataError, match=r"in use by process \d+ .*wait until the run has ended"):
        finished_run(tmp_path / "run")
    ledger.close()
    assert finished_run(tmp_path / "run") == record
    Ledger(tmp_path / "run").close()  # nothing is held


def test_prompts_are_told_by_their_content(tmp_path):
    file = tmp_path / "my prompts.jsonl"
    file.write_text('{"id": "a", "prompt": "say a"}\n')
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    record = RunRecord("hash", {"prompts.train": f"my prompts.jsonl ({digest})"}, "", 1, 0)
    assert prompt_file(record, file) == file
    with pytest.raises(DataError, match=r"the run's prompts my prompts.jsonl: .*give prompts_path"):
        prompt_file(record, None)
    file.write_text('{"id": "a", "prompt": "say b"}\n')
    with pytest.raises(DataError, match=rf"are my prompts.jsonl with hash {digest}, but .* has hash"):
        prompt_file(record, file)


def test_another_tokenizer_is_noticed(tmp_path):
    record = run(tmp_path / "run", {1: [judged([0.1, 0.9], "a")]})
    items = pairs_of_run(tmp_path / "run", record, PROMPTS, 512, DataRules())
    with pytest.raises(DataError, match=r"2 of 2 responses do not decode to their recorded text, first a/1"):
        refuse_other_tokenizer(tmp_path, [i for i in items.items if isinstance(i, Pair)], _tokenizer())
