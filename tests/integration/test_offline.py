"""Training from files on real Ray and DeepSpeed: SFT, then KTO on labelled responses, as one run; and once more."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pipelines.ledger.ledger import complete_checkpoints
from tests.integration.conftest import BIN, journal, losses, mlflow, run

PROMPTS = [
    f"Say something about {thing}." for thing in ("rain", "bread", "trains", "hills", "tea", "cats", "ink", "tin")
]


@pytest.fixture(scope="module")
def trained(ray_here, head, tiny, tmp_path_factory):
    """(configuration file, run directory, output) of a finished run; the cluster is the session's."""
    directory = tmp_path_factory.mktemp("offline")
    with (directory / "labels.jsonl").open("w") as file:
        for i, prompt in enumerate(PROMPTS * 2):
            good = bool((i + i // len(PROMPTS)) % 2)
            record = {"id": f"r{i}", "prompt": prompt, "completion": "It is fine." if good else "No.", "label": good}
            file.write(json.dumps(record) + "\n")
        file.write(json.dumps({"id": "empty", "prompt": "Say.", "completion": "", "label": True}) + "\n")
    with (directory / "demonstrations.jsonl").open("w") as file:
        for prompt in PROMPTS:
            file.write(json.dumps({"prompt": prompt, "completion": "It is a fine thing."}) + "\n")
    limits = "max_prompt_tokens: 96, max_response_tokens: 40"
    (directory / "run.yaml").write_text(
        f"run: {{name: offline, root: {directory / 'runs'}}}\n"
        f"model: {{path: {tiny}, dtype: float32}}\n"
        f"sft:\n  data: {{train: demonstrations.jsonl, batch_size: 4, {limits}}}\n"
        "  optimizer: {lr: 0.003, warmup_steps: 0}\n"
        f"data: {{train: labels.jsonl, batch_size: 6, epochs: 2, heldout_share: 0.2, evaluate_every: 2, {limits}}}\n"
        "objective: {name: kto, beta: 0.3}\n"
        "optimizer: {lr: 0.003, warmup_steps: 0}\n"
        "batching: {micro_batch_tokens: 256}\n"
        "checkpoint: {every: 2}\n"
        "resources: {trainer: {actors: 2, cpus: 0.25}, reference: {actors: 1, cpus: 0.25}}\n"
    )
    done = run(BIN / "rondo", "offline", directory / "run.yaml", RAY_ADDRESS=head.address)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return directory / "run.yaml", directory / "runs" / "offline", done.stdout


def test_both_phases_learn(trained):
    _, run_dir, output = trained
    sft, kto = losses(run_dir / "sft"), losses(run_dir)
    assert len(sft) == 2
    assert sft[2] < sft[1]
    assert kto[1] == pytest.approx(0.5, abs=1e-3)  # policy == reference (the SFT model), z = 0: 1 - sigmoid(0)
    assert kto[max(kto)] < 0.49
    assert "held-out at step" in output


def test_what_is_left_out_is_counted_and_named(trained):
    _, _, output = trained
    assert "16 of 17 records kept (labels)" in output
    assert "empty_response" in output


def test_each_phase_leaves_a_model_of_its_own(trained, tiny):
    _, run_dir, _ = trained
    models = [load_file(d / "model.safetensors") for d in (tiny, run_dir / "sft" / "model", run_dir / "model")]
    initial, after_sft, final = (m["model.embed_tokens.weight"] for m in models)
    assert not torch.equal(initial, after_sft)
    assert not torch.equal(after_sft, final)


def test_nothing_is_scored_twice_in_two_epochs_and_two_evaluations(trained):
    _, run_dir, _ = trained
    scores = journal(run_dir, "scores")
    keys = [(r["reference"], r["item"]) for r in scores]
    assert len(keys) == len(set(keys))
    items = {f"r{i}" for i in range(2 * len(PROMPTS))}
    assert items <= {r["item"] for r in scores}
    assert len(scores) > len(items)  # KTO's mismatched ones
    assert journal(run_dir / "sft", "scores") == []  # no reference there


def test_mlflow_holds_both_runs(trained):
    _, run_dir, _ = trained
    client, parent = mlflow(run_dir)
    assert parent.info.status == "FINISHED"
    assert {"loss", "heldout/loss", "rewards/margins", "log_ratio/chosen"} <= set(parent.data.metrics)
    assert "never arrived" not in trained[2]
    assert len(client.search_runs([parent.info.experiment_id])) == 2


def test_going_on_with_a_finished_run_changes_nothing(trained, head):
    config, run_dir, _ = trained
    before = journal(run_dir, "steps")
    again = run(BIN / "rondo", "offline", config, "--resume=auto", RAY_ADDRESS=head.address)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert "has been finished (step" in again.stdout
    assert journal(run_dir, "steps") == before
    assert complete_checkpoints(run_dir)
