"""A whole run whose policy judges itself; then its candidates are judged anew, and its versions play each other."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from pipelines.look.inspect_sources import read_corpus
from tests.integration.conftest import BIN, Finished, journal, losses, pairs, run, whole_run

RULE = "judge={kind: rule, rule: 'tests.rules:vowels'}"


@pytest.fixture
def command(judged, head):
    """A command of ``rondo`` about the run; returns what it printed."""

    def command(name: str, *words: str) -> str:
        done = run(BIN / "rondo", name, judged.directory, *words, RAY_ADDRESS=head.address)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    return command


@pytest.fixture(scope="module")
def judged(head, overrides) -> Finished:
    """Two steps; the engines' context is long enough for questions."""
    words = overrides(
        "selfish", "run.steps=2", "evaluation.prompts=4", "evaluation.probe=2", "sampling.max_model_len=1536",
        "checkpoint.keep=1", "judge={kind: llm, model: policy, min_mass: 0, tie_band: 0}",
    )  # fmt: skip
    return whole_run(head, words)


def test_the_policy_judges_with_the_weights_that_it_has(judged):
    records = journal(judged.directory, "judgements")
    assert Counter(r["step"] for r in records) == {1: 4, 2: 4}
    verdicts = [(r["step"], j) for r in records for j in r["judgements"]]
    assert all(0 < j["probability"] < 1 for _, j in verdicts)
    assert {j["judge"]["name"] for _, j in verdicts} == {"policy"}
    assert {(step, j["judge"]["weights"]) for step, j in verdicts} == {(1, "0.0"), (2, "0.1")}
    assert len({j["judge"]["definition_hash"] for _, j in verdicts}) == 1  # it learns; what it is asked stays
    for r in records:
        assert 2 <= len(r["judgements"]) <= 3
    assert set(losses(judged.directory)) == {1, 2}
    assert all(pairs(judged.directory).values())
    # Held-out answers are the second judge's alone.
    kept = sorted(p.name for p in (judged.directory / "ledger").glob("heldout-*.jsonl"))
    assert kept == ["heldout-second-judge.jsonl"]
    said = [j for r in journal(judged.directory, "heldout-second-judge") for j in r["judgements"]]
    assert {j["judge"]["name"] for j in said} == {"tests.rules:short"}
    assert "evaluation at step 2  short" in judged.output
    assert "policy: win rate" not in judged.output


def test_its_candidates_are_judged_anew_and_the_run_is_left_alone(judged, command):
    before = {p: p.read_bytes() for p in (judged.directory / "ledger").glob("*.jsonl")}
    output = command("rejudge", RULE, "--apply")
    (directory,) = (judged.directory / "rejudged").iterdir()
    report = json.loads((directory / "report.json").read_text())
    drift, old = report["drift"], [j for r in journal(judged.directory, "judgements") for j in r["judgements"]]
    assert drift["prompts"] == 8
    v = drift["verdicts"]
    assert v["compared"] == len(old)
    assert v["same"] + v["flipped"] + v["became_ties"] + v["untied"] == v["compared"]
    assert [j["name"] for j in report["old"]["judges"]] == ["policy"]
    assert [j["name"] for j in report["new"]["judges"]] == ["tests.rules:vowels"]
    assert report["heldout_step"] == 2
    assert sum(report["new"]["heldout"][k] for k in ("wins", "ties", "losses")) == 4
    assert sum(report["old"]["heldout"][k] for k in ("wins", "ties", "losses")) == 4
    assert report["asked"] == 8 + 4
    assert "What became of it" in output
    lines = [json.loads(line) for line in (directory / "pairs.jsonl").read_text().splitlines()]
    assert len(lines) == drift["pairs"]["new"] > 0
    assert {p: p.read_bytes() for p in (judged.directory / "ledger").glob("*.jsonl")} == before
    assert len(read_corpus(directory / "pairs.jsonl").pairs) == len(lines)  # as other commands read them


def test_its_versions_play_each_other(judged, command):
    output = command("arena", RULE)
    report = json.loads((judged.directory / "arena" / "report.json").read_text())
    assert set(report["players"]) == {"initial", "final"}  # the one checkpoint that is kept is the final model
    assert report["anchor"] == "initial"
    assert {r["player"]: r["rating"] for r in report["ratings"]}["initial"] == 1000
    assert all(r["low"] <= r["rating"] <= r["high"] for r in report["ratings"])
    assert report["prompts"] == 4
    assert report["judged"] == report["asked"] <= report["everybody"] == 4
    assert "everybody against everybody takes 4" in output
