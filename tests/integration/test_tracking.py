"""A real MLflow on sqlite: what a run writes is read back with MLflow's own client."""

import json
import shlex
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.loading import flatten, validate
from configs.runs import RunConfig
from pipelines.plots import METRICS, is_known
from pipelines.tracking import Tracker, TrackingError, _free_port
from preference.reports import (
    BeforeAfter,
    EvalReport,
    Judged,
    ProbeMetrics,
    SampleMetrics,
    SampleRow,
    StageTime,
    StepReport,
)
from preference.types import Fate, Version
from preference.winrate import WinRate
from tests.factories import JUDGING, TRAINED


def step(number: int) -> StepReport:
    return StepReport(
        step=number,
        version=Version(0, number),
        fates={Fate.TRAINED: 14, Fate.TIED: 2},
        stages=(StageTime("sample", 5.0, 500), StageTime("train", 4.0, 100)),
        seconds=9.0,
        sample=SampleMetrics(0.5 + number / 10, 0.3, 47.0, 0.8, 90.0, JUDGING),
        probe=ProbeMetrics(0.4, 1.5 * number, 8),
        train=replace(TRAINED, loss=0.6, scalars={"bonus": 7.0}),
        ages=(0,) * 14,
        rows=tuple(SampleRow(f"p{i}", "why?", "because \ud800 😀", 0.1 * i, "chosen", "0.1", 9) for i in range(3)),
    )


JUDGED = Judged("vader", WinRate(9, 0, 1, 0.9, 0.6, 0.98), 0.8, 0.46, 0.95)
EVAL = EvalReport(
    3,
    Version(0, 3),
    (JUDGED, replace(JUDGED, judge="b")),
    40.0,
    42.0,
    8.4,
    (BeforeAfter("q", "a", "b", 0.1, 0.9),),
    2.0,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for the module: creating the database takes seconds."""
    return tmp_path_factory.mktemp("a store")


def config_for(root: Path, name: str, **extra: Any) -> RunConfig:
    for file, rows in (("train.jsonl", 5), ("heldout.jsonl", 2)):
        (root / file).write_text("".join(json.dumps({"id": f"{file}{i}", "prompt": "hi"}) + "\n" for i in range(rows)))
    prompts = {"train": str(root / "train.jsonl"), "heldout": str(root / "heldout.jsonl")}
    raw = {"run": {"name": name, "root": str(root)}, "model": {"path": "/models/x"}, "prompts": prompts}
    return validate(RunConfig, raw | {"judge": {"kind": "rule", "rule": "a.b:c"}} | extra)


def test_a_killed_run_is_resumed_and_read_back(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config, warnings = config_for(root, "first"), list[str]()
    run_dir = root / "first"
    tracker = Tracker.open(config, run_dir, warn=warnings.append)
    tracker.log_inputs(config)
    for number in (1, 2, 3):
        tracker.log_step(step(number))
    tracker.log_eval(EVAL)
    tracker.finish("KILLED")

    from mlflow import MlflowClient

    client = MlflowClient(tracker.uri)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "KILLED"
    assert run.info.run_name == "first"
    assert {k: run.data.params[k] for k in flatten(config)} == flatten(config)
    assert {"package.mlflow", "package.torch", "git.commit", "hardware.cores"} <= set(run.data.params)
    assert run.data.tags["attempt"] == "1"

    later = config_for(root, "first", resources={"trainer": {"actors": 2}}, deadlines={"call_s": 5})
    again = Tracker.open(later, run_dir, tracker.run_id, warn=warnings.append)
    assert again.run_id == tracker.run_id
    assert client.get_run(again.run_id).info.status == "RUNNING"
    again.log_inputs(config)
    again.log_step(step(3))  # a replayed step
    again.log_step(step(4))
    again.finish("FINISHED")
    assert capfd.readouterr() == ("", "")

    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["resources.trainer.actors"] == "1"
    assert run.data.tags["resources.trainer.actors"] == "2"
    assert run.data.tags["attempt"] == "2"
    assert (run.data.tags["judge"], run.data.tags["judge_second"]) == ("vader", "b")
    assert all(is_known(name) for name in run.data.metrics)
    assert {"eval/win_rate_second", "objective/bonus", "tokens_per_s/train", "prompts/tied"} <= set(run.data.metrics)
    assert {p.step: p.value for p in client.get_metric_history(tracker.run_id, "objective/kl")} == {
        1: 1.5, 2: 3.0, 3: 4.5, 4: 6.0,
    }  # fmt: skip
    inputs = {i.tags[0].value: i.dataset for i in run.inputs.dataset_inputs}
    assert len(run.inputs.dataset_inputs) == 2
    assert (inputs["training"].name, inputs["heldout"].name) == ("train", "heldout")
    assert json.loads(inputs["training"].profile) == {"num_rows": 5}
    assert len({i.digest for i in inputs.values()}) == 2
    table = client.load_table(run.info.experiment_id, "samples/step-000003.json", [tracker.run_id])
    assert len(table) == 3  # not doubled by the replay
    assert list(table.columns) == ["step", "prompt_id", "prompt", "response", "score", "role", "version", "tokens"]
    assert len(client.load_table(run.info.experiment_id, "samples/eval-000003.json", [tracker.run_id])) == 1
    assert {"path": "samples/step-000004.json", "type": "table"} in json.loads(run.data.tags["mlflow.loggedArtifacts"])
    plots = {f.path for f in client.list_artifacts(tracker.run_id, "plots")}
    assert plots == {"plots/reward.png", "plots/reward_vs_kl.png", "plots/win_rate.png"}
    assert warnings == []
    assert (root / "mlartifacts").is_dir()


def test_a_thousand_tables_do_not_overflow_their_tag(root: Path) -> None:
    warnings: list[str] = []
    tracker = Tracker.open(config_for(root, "long"), root / "long", warn=warnings.append)
    tracker._client.set_tag(  # as 1000 steps leave it
        tracker.run_id,
        "mlflow.loggedArtifacts",
        json.dumps([{"path": f"samples/step-{i:06d}.json", "type": "table"} for i in range(100)]),
    )
    tracker.log_step(step(999_999))
    tables = json.loads(tracker._client.get_run(tracker.run_id).data.tags["mlflow.loggedArtifacts"])
    assert len(tables) == 100
    assert tables[-1]["path"] == "samples/step-999999.json"
    assert warnings == []


def test_mlflow_failing_keeps_the_run_going_and_delivers_later(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    tracker = Tracker.open(config_for(root, "flaky"), root / "flaky", warn=warnings.append)

    def down(*_: object, **__: object) -> None:
        raise ConnectionError("connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(tracker._client, "log_batch", down)
        tracker.log_step(step(1))
        tracker.log_step(step(2))
        tracker.log_eval(EVAL)
    assert len(warnings) == 1
    assert "connection refused" in warnings[0]
    tracker.log_step(step(3))
    assert [p.step for p in tracker._client.get_metric_history(tracker.run_id, "loss")] == [1, 2, 3]
    assert "is back" in warnings[1]

    monkeypatch.setattr(tracker._client, "log_batch", down)
    monkeypatch.setattr("pipelines.tracking.time.sleep", lambda seconds: None)
    tracker.log_step(step(4))
    tracker.finish("FINISHED")
    assert "MLFLOW IS INCOMPLETE" in warnings[-1]
    assert "metrics of step 4" in warnings[-1]


def test_what_mlflow_refuses_does_not_hold_up_the_rest(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "no space left on disk")

    warnings: list[str] = []
    tracker = Tracker.open(config_for(root, "refused"), root / "refused", warn=warnings.append)
    tracker._metrics({"loss": 1.0, "no/such/metric": 1.0}, 1)
    assert "no/such/metric" in warnings[0]
    tracker._metrics({"objective/not a % name": 1.0}, 1)
    assert "MLflow refused metrics of step 1" in warnings[1]
    monkeypatch.setattr(tracker._client, "log_text", full)
    tracker.log_step(step(2))
    assert "disk" in warnings[-1]
    assert tracker._client.get_run(tracker.run_id).data.metrics["loss"] == 0.6
    assert set(tracker._client.get_run(tracker.run_id).data.metrics) <= set(METRICS) | {"objective/bonus"}


def test_a_run_that_the_store_lost_starts_anew(root: Path) -> None:
    warnings: list[str] = []
    tracker = Tracker.open(config_for(root, "lost"), root / "lost", "0" * 32, warn=warnings.append)
    assert tracker.run_id != "0" * 32
    assert "no longer exists" in warnings[0]


def test_an_unreachable_server_is_refused_at_the_start(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = config_for(tmp_path, "x", tracking={"uri": f"http://me:secret@127.0.0.1:{port}"})
    with pytest.raises(TrackingError, match=r"check tracking\.uri") as refusal:
        Tracker.open(config, tmp_path / "x")
    assert "secret" not in str(refusal.value)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["hello world, this is a test"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    directory = tmp_path_factory.mktemp("model") / "export"
    tokenizer.save_pretrained(directory)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(directory)
    return directory


def test_the_final_model_is_in_the_registry_and_answers(
    root: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    warnings: list[str] = []
    tracker = Tracker.open(config_for(root, "model"), root / "model", warn=warnings.append)
    tracker.log_step(step(1))
    capfd.readouterr()
    assert tracker.log_model(tiny_model, "rondo-model") == "1"
    assert capfd.readouterr().err == ""
    assert tracker.log_model(tiny_model, "rondo-model") == "2"
    assert tracker.log_model(root / "no-model", "rondo-model") is None
    assert "no-model" in warnings[0]

    import mlflow

    client = tracker._client
    version = client.get_model_version_by_alias("rondo-model", "candidate")
    assert (version.version, version.run_id) in ((2, tracker.run_id), ("2", tracker.run_id))
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    assert mlflow.active_run() is None
    experiment = client.get_run(tracker.run_id).info.experiment_id
    logged = {m.model_id: m for m in client.search_logged_models([experiment])}
    assert sorted(str(m.status) for m in logged.values()) == ["FAILED", "READY", "READY"]
    assert all(str(root / "mlartifacts") in m.artifact_location for m in logged.values())
    model = mlflow.pyfunc.load_model("models:/rondo-model@candidate")
    answer = model.predict({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4})
    assert answer[0]["usage"]["completion_tokens"] <= 4
    tracker.finish("FINISHED")


def test_the_ui_command_names_program_and_store(root: Path) -> None:
    tracker = Tracker.open(config_for(root, "ui"), root / "ui")
    program, verb, option, uri, *port = shlex.split(tracker.ui_command())  # the store's path has a space
    assert Path(program).exists()
    assert (verb, option, port[0]) == ("ui", "--backend-store-uri", "--port")
    assert 5000 <= int(port[1]) < 5100
    assert uri == f"sqlite:///{root / 'mlflow.db'}"


def test_the_shown_command_takes_a_port_that_is_free():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert _free_port(port) > port
