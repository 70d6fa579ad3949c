"""The whole real chain on a tiny model: exactness, agreement, export, tracking."""

import math

import numpy as np
import psutil
import pytest
import torch

from pipelines.export import export_run, export_weights
from pipelines.ledger.ledger import complete_checkpoints, read_record
from tests.integration.conftest import command_line, journal, losses, shared_memory_of


def metric(run_dir, config, name):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{config.run.root}/mlflow.db")
    return [m.value for m in client.get_metric_history(read_record(run_dir).mlflow_run, name)]


def test_first_loss_is_ln2_through_the_whole_chain(finished):
    run_dir = finished.directory
    assert losses(run_dir)[1] == pytest.approx(math.log(2), abs=1e-6)


def test_training_changes_the_loss(finished):
    run_dir = finished.directory
    assert abs(losses(run_dir)[3] - math.log(2)) > 1e-3


def test_sampler_and_trainer_agree(finished):
    config, run_dir = finished.config, finished.directory
    mismatch = metric(run_dir, config, "mismatch/logprob")
    assert len(mismatch) == 3
    assert max(mismatch) < 1e-4


def response_logps(model, prompt_ids, response_ids):
    tokens = torch.tensor([prompt_ids + response_ids])
    with torch.no_grad():
        logps = model(tokens).logits.log_softmax(-1)[0, len(prompt_ids) - 1 : -1]
    return logps.gather(1, torch.tensor(response_ids)[:, None])[:, 0].numpy()


def test_weights_one_version_stale_would_not_pass(finished, tmp_path):
    """Samples stamped v2 fit the weights of step 2 at least twice as well as those of step 1."""
    from pathlib import Path

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipelines.export import _checkpoint_weights
    from pipelines.prompts import parse_line

    config, run_dir = finished.config, finished.directory
    checkpoints = dict(complete_checkpoints(run_dir))
    models = {}
    for step in (1, 2):
        out = export_weights(
            _checkpoint_weights(checkpoints[step], "float32"), Path(config.model.path), tmp_path / str(step)
        )
        models[step] = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    turns = {}
    for line in Path(config.prompts.train).read_text().splitlines():
        identifier, messages, _ = parse_line(line)
        turns[identifier] = [{"role": m.role, "content": m.content} for m in messages]
    ours, stale = [], []
    for c in journal(run_dir, "candidates"):
        if c["step"] == 3:
            assert c["version_min"] == c["version_max"] == {"incarnation": 0, "step": 2}
            prompt = tokenizer.apply_chat_template(turns[c["prompt_id"]], add_generation_prompt=True, return_dict=False)
            sampled = np.array(c["logprobs"])
            ours.append(np.abs(sampled - response_logps(models[2], prompt, c["token_ids"])).mean())
            stale.append(np.abs(sampled - response_logps(models[1], prompt, c["token_ids"])).mean())
    assert len(ours) == 12
    assert np.mean(ours) < 1e-4
    assert np.mean(ours) < np.mean(stale) / 2


def test_every_prompt_has_one_fate(finished):
    config, run_dir = finished.config, finished.directory
    for step in (1, 2, 3):
        judged = [r for r in journal(run_dir, "judgements") if r["step"] == step]
        assert len({r["prompt_id"] for r in judged}) == len(judged) == 4
    fates = ["trained", "tied", "identical", "unfinished", "judge_failed", "abstained", "stale", "too_long"]
    totals = np.sum([metric(run_dir, config, f"prompts/{f}") for f in fates], axis=0)
    assert totals.tolist() == [4, 4, 4]


def test_export_loads_in_plain_transformers_and_plain_vllm(finished, engines, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run_dir = finished.directory
    out = export_run(run_dir, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, return_dict=False
    )
    plain = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=8, do_sample=False
    )[0, len(prompt) :].tolist()

    get, engine, _ = engines
    assert get(engine.plain.remote(str(out), prompt)) == plain


def test_mlflow_holds_the_run(finished):
    from mlflow import MlflowClient

    config, run_dir = finished.config, finished.directory
    client = MlflowClient(f"sqlite:///{config.run.root}/mlflow.db")
    run = client.get_run(read_record(run_dir).mlflow_run)
    assert run.info.status == "FINISHED"
    assert run.data.params["objective.beta"] == "0.1"
    wanted = {
        "loss", "grad_norm", "lr", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins",
        "logps/chosen", "logps/rejected", "objective/kl", "objective/entropy", "objective/scores", "response/length",
        "response/missing_eos", "policy/age", "mismatch/logprob", "eval/win_rate", "eval/kl", "time/sample",
        "time/train", "tokens_per_s/sample", "tokens_per_s/train",
    }  # fmt: skip
    assert wanted <= set(run.data.metrics)
    assert f"win rate {run.data.metrics['eval/win_rate']:.3f} [" in finished.output
    assert len(run.inputs.dataset_inputs) == 3  # prompts, held-out prompts, and the journal of pairs
    assert client.get_model_version_by_alias("whole", "candidate").run_id == run.info.run_id


def test_the_person_sees_what_happened(finished):
    run_dir, text = finished.directory, finished.output
    assert text.count("step ") >= 3
    for words in ("win rate", "vowels", "short", "Where the time went", str(run_dir / "model"), "mlflow ui"):
        assert words in text
    assert "Traceback" not in text


def test_nothing_is_left_behind(finished, head):
    of_head = [p for p in psutil.process_iter() if str(head.directory) in " ".join(command_line(p))]
    workers = [" ".join(command_line(c)) for p in of_head for c in p.children(recursive=True)]
    assert workers  # the head's own: other tests may be running others beside it
    actors = ("ray::SamplerActor", "ray::ReferenceActor", "ray::RayTrainWorker")
    assert not [name for name in workers if name.startswith(actors)]
    assert shared_memory_of(finished.directory) == []


def test_a_run_directory_that_a_node_does_not_see_is_refused(ray_here, tmp_path, monkeypatch):
    from actors import nodes
    from pipelines import cluster
    from pipelines.ledger.ledger import LedgerError

    assert nodes.blind_nodes(tmp_path) == []
    cluster.refuse_invisible(tmp_path)
    assert list(tmp_path.iterdir()) == []  # the mark is gone
    # A node with a directory of its own under the same name: the mark is not in it.
    monkeypatch.setattr(nodes, "_sees", lambda path: False)
    with pytest.raises(LedgerError, match=r"run\.root = .* is not visible from \d+\."):
        cluster.refuse_invisible(tmp_path)
