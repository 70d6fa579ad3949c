"""The whole loop with a judge made of judges, from which every two answers are compared and ties are kept."""

from __future__ import annotations

import json
import math
import re
from collections import Counter

import pytest

from tests.integration.conftest import BIN, Finished, journal, losses, pairs, run, whole_run
from tests.judges import opinionated_model

LN2 = math.log(2)


@pytest.fixture(scope="module")
def judged(head, overrides, tmp_path_factory) -> Finished:
    """A chat model compares; what it is unsure of goes to two rules, and so does a share of what it is sure of."""
    model = opinionated_model(tmp_path_factory.mktemp("judge") / "opinionated")
    engine = "dtype: float32, max_model_len: 1024, kv_cache_gb: 0.1"
    first = f"{{kind: llm, model: {model}, min_mass: 0, tie_band: 0, {engine}}}"
    rules = ["{judge: {kind: rule, rule: 'tests.rules:vowels'}}", "{judge: {kind: rule, rule: 'tests.rules:long'}}"]
    panel = f"{{kind: panel, members: [{', '.join(rules)}], tie_band: 0.25}}"
    words = overrides(
        "judged", "run.steps=2", "evaluation.prompts=2", "evaluation.probe=0", "evaluation.judge=null",
        f"judge={{kind: escalation, first: {first}, then: {panel}, below: 0.01, on_flip: false, audit: 0.2}}",
        "resources.judge.cpus=0.05", "objective={name: rao_kupper, beta: 0.1}",
        "pairing={strategy: all_pairs, ties: keep}",
    )  # fmt: skip
    return whole_run(head, words)


def test_what_a_chat_model_is_unsure_of_goes_to_a_panel(judged):
    records = journal(judged.directory, "judgements")
    assert all(0 <= j["probability"] <= 1 and j["judge"]["definition_hash"] for r in records for j in r["judgements"])
    overruled = [j for r in records for j in r["overruled"]]
    names = Counter(j["judge"]["name"] for r in records for j in r["judgements"])
    assert len(names) == 2  # the model, and the panel
    assert sum(n for name, n in names.items() if "+" in name) == len(overruled) > 0
    assert json.dumps(records).count('"first_id"') == sum(names.values()) + len(overruled)


def test_kept_ties_are_trained_as_ties(judged, head, tmp_path):
    file = tmp_path / "pairs.jsonl"
    done = run(BIN / "rondo", "pairs", judged.directory, file, RAY_ADDRESS=head.address)
    assert done.returncode == 0, done.stderr
    records = {r["id"]: r for r in map(json.loads, file.read_text().splitlines())}
    trained = pairs(judged.directory)
    assert set(records) == {i for ids in trained.values() for i in ids}
    first = [records[i].get("tied", False) for i in trained[1]]
    assert 0 < sum(first) < len(first)
    assert 4 * 2 < len(first) <= 4 * 3  # at most every two of three candidates, to each of four prompts
    # Policy and reference are the same: equals tie with probability 1/2, and either wins with 1/4.
    ties = sum(first)
    assert losses(judged.directory)[1] == pytest.approx(
        (ties * LN2 + (len(first) - ties) * 2 * LN2) / len(first), abs=1e-5
    )
    seen = run(BIN / "rondo", "inspect", file)
    assert seen.returncode == 0, seen.stderr
    share = f"{sum(r.get('tied', False) for r in records.values()) / len(records):.0%}"
    assert re.search(rf"kept ties\W+{share} .* of {len(records)}\b", seen.stdout)
    inspected = run(BIN / "rondo", "inspect", judged.directory, "--html", tmp_path / "page.html")
    assert inspected.returncode == 0, inspected.stderr
    assert "prompts: trained" in inspected.stdout
    assert (tmp_path / "page.html").stat().st_size > 10_000
