"""A run against everybody who may play: who answered, with which weights, and what came of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.weights import WeightFiles
from configs.runs import RunConfig
from pipelines.export import export_weights
from preference.league import INITIAL, as_of, members
from preference.types import Version, content_id
from tests.integration.conftest import Finished, journal, mlflow, whole_run
from tests.tiny import tiny_model

STEPS = 4
TALK = ("Hello.", "Good day. What can I do for you?", "Tell me about Paris.")


def prompts_file(path: Path) -> Path:
    """Every second prompt is a conversation that has been going on for a while."""
    lines = []
    for i in range(16):
        turns = [("user", f"Say something about the number {i}.")]
        if i % 2:
            turns = [("system", "Be brief."), *zip(("user", "assistant", "user"), TALK, strict=True)]
            turns[-1] = ("user", f"{TALK[2]} I asked {i} times.")
        record = {"id": f"p{i}", "messages": [{"role": r, "content": c} for r, c in turns]}
        lines.append(json.dumps(record | {"response": f"It is a good number, {i}."[: 10 + i]}))
    path.write_text("\n".join(lines))
    return path


def guest(path: Path) -> Path:
    """Another model that reads prompts its own way."""
    tiny_model(path, "qwen3", seed=3)
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant]"
    (path / "chat_template.jinja").write_text(template)
    return path


@pytest.fixture(scope="module")
def played(head, overrides, tmp_path_factory) -> Finished:
    scratch = tmp_path_factory.mktemp("opponents")
    words = overrides(
        "opponents",
        f"run.steps={STEPS}",
        f"prompts.train={prompts_file(scratch / 'prompts.jsonl')}",
        "prompts.max_tokens=100",
        "sampling={prompts_per_step: 4, candidates: 2, max_tokens: 24, max_model_len: 128, kv_cache_gb: 0.1}",
        "opponents=[{player: previous}, {player: league, size: 2, every: 2}, {player: reference}, {player: data},"
        f" {{player: model, name: guest, path: {guest(scratch / 'guest')}}}]",
        "pairing.strategy=versus",
        "evaluation={prompts: 2, probe: 0}",
        "checkpoint={every: 2, keep: 9}",
        "resources={trainer: {actors: 1, cpus: 0.25}, judge: {cpus: 0.125}}",
        "weights.transport=filesystem",
    )
    return whole_run(head, words)


def version_of(candidate: dict) -> Version:
    assert candidate["version_min"] == candidate["version_max"]
    return Version(**candidate["version_max"])


def published(directory: Path) -> list[Version]:
    """What the weights of the end descend from, by the steps journal."""
    last = {r["step"]: Version.parse(r["version"]) for r in journal(directory, "steps") if r["event"] == "trained"}
    return [v for step, v in last.items() if v.step == step]


def test_every_group_holds_everybody_with_the_weights_they_should_have(played):
    lineage, groups = published(played.directory), {}
    for record in journal(played.directory, "candidates"):
        groups.setdefault((record["step"], record["group"]), {})[record["id"]] = record
    assert len(groups) == 4 * STEPS
    assert len(lineage) == STEPS
    versions = {v.step for v in lineage}
    for (step, _), responses in groups.items():
        by_player = {}
        for r in responses.values():
            by_player.setdefault(r.get("player"), []).append(r)
        guests = by_player.pop("guest", [])  # random bytes may be too many in the policy's tokens
        assert all("logprobs" not in r and r["text"] for r in guests)
        assert list(by_player) == ["policy", "previous", "league", "reference", "data"]
        assert [len(rs) for rs in by_player.values()] == [2, 1, 1, 1, 1]
        assert {version_of(r).step for r in by_player["policy"]} == {step - 1}
        (previous,), (league,), (reference,) = (by_player[p] for p in ("previous", "league", "reference"))
        assert version_of(previous).step == as_of(lineage, step - 2).step
        assert version_of(league).step in {v.step for v in members(lineage, 2, 2, step - 1)}
        assert version_of(reference) == INITIAL
        assert {version_of(r).step for r in (previous, league)} <= versions | {0}


def conversation(config: RunConfig, prompt_id: str, tokenizer) -> list[int]:
    for line in Path(config.prompts.train).read_text().splitlines():
        record = json.loads(line)
        if record["id"] == prompt_id:
            return tokenizer.apply_chat_template(record["messages"], add_generation_prompt=True, return_dict=False)
    raise AssertionError(prompt_id)


def test_what_they_said_fits_the_weights_they_are_said_to_have(played, tmp_path):
    """Log-probs are those of the stamped version, and of no other; of conversations of several turns, too."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model_path = Path(played.config.model.path)
    players = {v: p for p in (played.directory / "players").glob("*.*") if (v := Version.parse(p.name)) != INITIAL}
    newest = max(players)
    exported = export_weights(WeightFiles.open(players[newest]), model_path, tmp_path / "newest")
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    models = {
        0: AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval(),
        newest.step: AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval(),
    }

    def error(record: dict, step: int) -> float:
        prompt = conversation(played.config, record["prompt_id"], tokenizer)
        tokens = torch.tensor([prompt + record["token_ids"]])
        with torch.no_grad():
            logps = models[step](tokens).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        found = logps.gather(1, torch.tensor(record["token_ids"])[:, None])[:, 0].numpy()
        return float(np.abs(found - np.array(record["logprobs"])).mean())

    records = [r for r in journal(played.directory, "candidates") if "logprobs" in r]
    initial = [r for r in records if r["player"] == "reference"]
    assert len(initial) == 4 * STEPS
    assert any(int(r["prompt_id"][1:]) % 2 for r in initial)  # conversations of several turns among them
    assert np.mean([error(r, 0) for r in initial]) < 1e-4
    assert np.mean([error(r, newest.step) for r in initial]) > 1e-3
    own = [r for r in records if version_of(r).step == newest.step]
    assert {r["player"] for r in own} <= {"policy", "previous", "league"}
    if own:
        assert np.mean([error(r, newest.step) for r in own]) < 1e-4


def test_pairs_join_the_policy_with_its_opponents_and_the_figures_are_the_policys(played):
    responses = {r["id"]: r for r in journal(played.directory, "candidates")}
    joined = {
        content_id("pair", a["id"], b["id"])
        for a in responses.values()
        for b in responses.values()
        if a["prompt_id"] == b["prompt_id"] and (a.get("player") == "policy") != (b.get("player") == "policy")
    }
    trained = [p for r in journal(played.directory, "steps") if r["event"] == "prepared" for p in r["pairs"]]
    assert len(trained) >= 2 * STEPS
    assert set(trained) <= joined
    client, found = mlflow(played.directory)
    names = found.data.metrics
    for name in ("previous", "league", "reference", "data"):
        assert 0 <= names[f"opponents/{name}/win_rate"] <= 1
        assert names[f"opponents/{name}/games"] == 8
    unusable = [m.value for m in client.get_metric_history(found.info.run_id, "opponents/unusable")]
    answered = [r for r in responses.values() if r.get("player") == "guest"]
    assert len(answered) > 4
    assert len(answered) + sum(unusable) == 4 * STEPS
    loads = [m.value for m in client.get_metric_history(found.info.run_id, "opponents/loads")]
    assert len(loads) == STEPS
    assert max(loads) <= 3
    ages = [m.value for m in client.get_metric_history(found.info.run_id, "policy/age_max")]
    mismatch = [m.value for m in client.get_metric_history(found.info.run_id, "mismatch/logprob")]
    assert ages == [0] * STEPS
    assert max(mismatch) < 1e-4


def test_only_what_may_be_asked_for_is_kept(played):
    kept = {p.name for p in (played.directory / "players").glob("*.*")}
    steps = {Version.parse(name).step for name in kept}
    assert {0, STEPS, STEPS - 1} <= steps
    assert len(kept) <= 6
