"""Several pairs of a prompt with kept ties, and labels: through sampler, judge, reference, trainer, ledger and file."""

import json
import math
import re

import pytest

from tests.integration.conftest import BIN, TINY, journal, losses, pairs, run

SMALL = ["run.steps=2", "evaluation.prompts=2", "evaluation.probe=0"]
LN2 = math.log(2)


@pytest.fixture(scope="module")
def go(head, ray_here, overrides, tmp_path_factory):
    """Runs the tiny configuration on the session's cluster; returns its directory."""

    def start(name, *more):
        words = overrides(name, *SMALL, *more)
        done = run(BIN / "rondo", "run", TINY, *words, RAY_ADDRESS=head.address)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        root = next(w.partition("=")[2] for w in words if w.startswith("run.root="))
        return tmp_path_factory.getbasetemp() / root / name

    return start


def test_kept_ties_are_trained_as_ties(go, head, tmp_path):
    tied = ["pairing.strategy=all_pairs", "pairing.ties=keep", "pairing.min_margin=0.08"]
    directory = go("ties", "objective={name: rao_kupper, beta: 0.1}", *tied)
    file = tmp_path / "pairs.jsonl"
    done = run(BIN / "rondo", "pairs", directory, file, RAY_ADDRESS=head.address)
    assert done.returncode == 0, done.stderr
    records = {r["id"]: r for r in map(json.loads, file.read_text().splitlines())}
    trained = pairs(directory)
    assert set(records) == {i for ids in trained.values() for i in ids}
    first = [records[i].get("tied", False) for i in trained[1]]
    assert 0 < sum(first) < len(first)
    assert len(first) == 4 * 3  # every two of three candidates, to each of four prompts
    # Policy and reference are the same: equals tie with probability 1/2, and either wins with 1/4.
    ties = sum(first)
    assert losses(directory)[1] == pytest.approx((ties * LN2 + (len(first) - ties) * 2 * LN2) / len(first), abs=1e-5)
    seen = run(BIN / "rondo", "inspect", file)
    assert seen.returncode == 0, seen.stderr
    share = f"{sum(r.get('tied', False) for r in records.values()) / len(records):.0%}"
    assert re.search(rf"kept ties\W+{share} .* of {len(records)}\b", seen.stdout)
    inspected = run(BIN / "rondo", "inspect", directory, "--html", tmp_path / "page.html")
    assert inspected.returncode == 0, inspected.stderr
    assert "prompts: trained" in inspected.stdout
    assert (tmp_path / "page.html").stat().st_size > 10_000


def test_labels_reach_kto(go):
    directory = go("labels", "objective={name: kto, beta: 0.3}", "pairing.strategy=labels")
    values = {j["candidate_id"]: j["value"] for r in journal(directory, "judgements") for j in r["judgements"]}
    texts: dict[str, dict[tuple[int, ...], float]] = {}
    for c in journal(directory, "candidates"):
        if c["step"] == 1:
            texts.setdefault(c["prompt_id"], {}).setdefault(tuple(c["token_ids"]), values[c["id"]])
    away = [abs(v - sum(own.values()) / len(own)) > 1e-9 for own in texts.values() for v in own.values()]
    assert len(pairs(directory)[1]) == sum(away) > 2 * len(texts)  # more than a pair of each prompt
    assert losses(directory)[1] == pytest.approx(0.5, abs=1e-3)  # policy == reference: 1 - sigmoid(0)
