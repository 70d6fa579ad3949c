"""A real MLflow on sqlite: what a run writes is read back with MLflow's own client."""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from configs.loading import config_hash, flatten, scientific, validate
from configs.runs import RunConfig
from pipelines.ledger.record import RunRecord, write_record
from pipelines.look.dictionary import METRICS, is_known
from pipelines.tracking import Tracker, TrackingError, send_waiting
from pipelines.tracking.client import free_port
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
from preference.types import Fate, JudgedGroup, JudgeInfo, Outcome, Verdict, Version, Vote, content_id
from preference.winrate import WinRate
from tests.factories import JUDGING, TRAINED, judged


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
        judged=(judged([0.1, 0.9], f"s{number}"),),
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


def client(tracker: Tracker) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracker.uri)


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

    store = client(tracker)
    run = store.get_run(tracker.run_id)
    assert run.info.status == "KILLED"
    assert run.info.run_name == "first"
    assert run.data.params == scientific(config)  # what defines the experiment, and nothing else
    elsewhere = {k: v for k, v in flatten(config).items() if k not in scientific(config)}
    assert elsewhere == {k: run.data.tags[k] for k in elsewhere}
    assert {"package.mlflow", "package.torch", "git.commit", "hardware.cores"} <= set(run.data.tags)
    assert run.data.tags["attempt"] == "1"

    later = config_for(root, "first", resources={"trainer": {"actors": 2}}, deadlines={"call_s": 5})
    again = Tracker.open(later, run_dir, tracker.run_id, warn=warnings.append)
    assert again.run_id == tracker.run_id
    again._outbox.drain(60)
    assert store.get_run(again.run_id).info.status == "RUNNING"
    again.log_cluster({"cluster.nodes": "2"})
    again.log_inputs(config)
    again.log_step(step(3))  # a replayed step
    again.log_step(step(4))
    again.finish("FINISHED")
    assert capfd.readouterr() == ("", "")

    run = store.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert "resources.trainer.actors" not in run.data.params
    assert run.data.tags["resources.trainer.actors"] == "2"
    assert (run.data.tags["attempt"], run.data.tags["cluster.nodes"]) == ("2", "2")
    assert (run.data.tags["judge"], run.data.tags["judge_second"]) == ("vader", "b")
    assert all(is_known(name) for name in run.data.metrics)
    assert {"eval/win_rate_second", "objective/bonus", "tokens_per_s/train", "prompts/tied"} <= set(run.data.metrics)
    assert {p.step: p.value for p in store.get_metric_history(tracker.run_id, "objective/kl")} == {
        1: 1.5, 2: 3.0, 3: 4.5, 4: 6.0,
    }  # fmt: skip
    inputs = {i.tags[0].value: i.dataset for i in run.inputs.dataset_inputs}
    assert len(run.inputs.dataset_inputs) == 2
    assert (inputs["training"].name, inputs["heldout"].name) == ("train", "heldout")
    assert json.loads(inputs["training"].profile) == {"num_rows": 5}
    assert len({i.digest for i in inputs.values()}) == 2
    table = store.load_table(run.info.experiment_id, "samples/step-000003.json", [tracker.run_id])
    assert len(table) == 3  # not doubled by the replay
    assert list(table.columns) == ["step", "prompt_id", "prompt", "response", "score", "role", "version", "tokens"]
    assert len(store.load_table(run.info.experiment_id, "samples/eval-000003.json", [tracker.run_id])) == 1
    assert {"path": "samples/step-000004.json", "type": "table"} in json.loads(run.data.tags["mlflow.loggedArtifacts"])
    plots = {f.path for f in store.list_artifacts(tracker.run_id, "plots")}
    assert {"plots/reward.png", "plots/reward_vs_kl.png", "plots/win_rate.png", "plots/drift.png"} <= plots
    assert warnings == []
    assert (root / "mlartifacts").is_dir()


def test_a_thousand_tables_do_not_overflow_their_tag(root: Path) -> None:
    warnings: list[str] = []
    tracker = Tracker.open(config_for(root, "long"), root / "long", warn=warnings.append)
    client(tracker).set_tag(  # as 1000 steps leave it
        tracker.run_id,
        "mlflow.loggedArtifacts",
        json.dumps([{"path": f"samples/step-{i:06d}.json", "type": "table"} for i in range(100)]),
    )
    tracker.log_step(step(999_999))
    tracker.finish("FINISHED")
    tables = json.loads(client(tracker).get_run(tracker.run_id).data.tags["mlflow.loggedArtifacts"])
    assert len(tables) == 100
    assert tables[-1]["path"] == "samples/step-999999.json"
    assert warnings == []


def test_what_mlflow_refuses_does_not_hold_up_the_rest(root: Path) -> None:
    warnings: list[str] = []
    tracker = Tracker.open(config_for(root, "refused"), root / "refused", warn=warnings.append)
    report = step(1)
    assert report.train
    odd = replace(report.train, scalars={"not a % name": 1.0})
    tracker.log_step(replace(report, train=odd))
    tracker.log_step(step(2))
    tracker.finish("FINISHED")
    assert "MLflow refused step 1" in warnings[0]
    assert "INCOMPLETE: 1 entries" in warnings[1]
    run = client(tracker).get_run(tracker.run_id)
    assert run.data.metrics["loss"] == 0.6
    assert set(run.data.metrics) <= set(METRICS) | {"objective/bonus"}


def test_a_run_that_the_store_lost_is_sent_anew_from_its_beginning(root: Path) -> None:
    warnings: list[str] = []
    first = Tracker.open(config_for(root, "lost"), root / "lost", warn=warnings.append)
    first.log_step(step(1))
    first.finish("KILLED")
    client(first).delete_run(first.run_id)
    tracker = Tracker.open(config_for(root, "lost"), root / "lost", first.run_id, warn=warnings.append)
    tracker.log_step(step(2))
    tracker.finish("FINISHED")
    assert tracker.run_id != first.run_id
    assert "no longer exists" in warnings[0]
    assert [p.step for p in client(tracker).get_metric_history(tracker.run_id, "loss")] == [1, 2]


class Server:
    """A real tracking server on one port, as often as it is started."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, free_port(6200)
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [str(Path(sys.executable).with_name("mlflow")), "server", "--host", "127.0.0.1", "--workers", "1"]
        words += ["--port", str(self.port), "--backend-store-uri", f"sqlite:///{self.directory / 'server.db'}"]
        words += ["--artifacts-destination", str(self.directory / "artifacts")]
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log, env=env, cwd=self.directory)
        for _ in range(600):
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            assert self._process.poll() is None, (self.directory / "server.log").read_text()[-2000:]
            time.sleep(0.2)
        raise AssertionError("the server does not come up")

    def kill(self) -> None:
        """It and its workers, at once."""
        assert self._process
        ours = [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]
        for process in ours:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        psutil.wait_procs(ours, timeout=20)


def human(name: str, *votes: Vote, waiting: bool = False) -> JudgedGroup:
    """Two answers that people were asked about."""
    group = judged([None, None], name).group
    first, second = (c.id for c in group.candidates)
    said = Verdict(first, second, Outcome.FIRST, 0.75, JudgeInfo("human", "guide"), rationale="warmer", votes=votes)
    return JudgedGroup(group, () if waiting else (said,))


def test_a_server_that_is_killed_is_caught_up_with_across_a_restart_of_the_driver(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No gap, no duplicate step, and late answers of people find the trace of the step that asked."""
    server, warnings = Server(tmp_path), list[str]()
    server.start()
    try:
        config = config_for(tmp_path, "outage", tracking={"uri": server.url, "parent": "a sweep"})
        run_dir = tmp_path / "outage"
        tracker = Tracker.open(config, run_dir, warn=warnings.append)
        tracker.log_step(replace(step(1), waiting=(human("late", waiting=True),)))
        assert tracker._outbox.drain(120)
        assert warnings == []
        server.kill()
        tracker.log_step(step(2))
        assert not tracker._outbox.drain(120)
        assert "the run goes on" in warnings[0]
        tracker.finish("KILLED")  # the driver goes while MLflow is down
        assert "INCOMPLETE" in warnings[-1]

        warnings.clear()
        again = Tracker.open(config, run_dir, tracker.run_id, warn=warnings.append)  # and comes back while it is
        assert again.run_id == tracker.run_id
        assert "is down" in warnings[0]
        again.log_step(step(2))  # replayed after the checkpoint
        votes = Vote("annotator-1", "first", 3, 4.0), Vote("annotator-2", "both_bad", None, 5.0)
        again.log_step(replace(step(3), judged=(human("late", *votes), *step(3).judged)))
        server.start()
        assert again._outbox.drain(120)
        assert "is back" in warnings[-1]
        again.finish("FINISHED")
        write_record(run_dir, RunRecord(config_hash(config), scientific(config), again.run_id, 2, 3))
        assert send_waiting(run_dir, "", warnings.append) == []  # `rondo sync`
        assert capfd.readouterr() == ("", "")

        store = client(again)
        run = store.get_run(again.run_id)
        assert run.info.status == "FINISHED"
        assert store.get_run(run.data.tags["mlflow.parentRunId"]).info.run_name == "a sweep"
        for name in ("loss", "objective/kl", "time/iteration"):
            assert [p.step for p in store.get_metric_history(again.run_id, name)] == [1, 2, 3]
        assert {f.path for f in store.list_artifacts(again.run_id, "samples")} == {
            f"samples/step-00000{n}.json" for n in (1, 2, 3)
        }
        check_traces(store, run)
    finally:
        server.kill()


def check_traces(store: Any, run: Any) -> None:
    """Of three steps with one rated group each, and of the group that people were asked about in the first."""
    found = store.search_traces(locations=[run.info.experiment_id], run_id=run.info.run_id, max_results=50)
    traces = {t.info.tags["rondo.group"]: t for t in found}
    assert set(traces) == {"s1/0", "s2/0", "s3/0", "late/0"}
    late = traces["late/0"]
    assert late.info.tags["rondo.step"] == "1"
    assert late.info.state.value == "OK"
    said = {(a.name, a.source.source_type, a.source.source_id): a for a in late.info.assessments}
    assert set(said) == {
        ("verdict", "HUMAN", "human"), ("human", "HUMAN", "annotator-1"), ("human", "HUMAN", "annotator-2"),
    }  # fmt: skip
    assert said["verdict", "HUMAN", "human"].value == "response 1"
    assert said["verdict", "HUMAN", "human"].rationale == "warmer"
    assert said["verdict", "HUMAN", "human"].metadata["definition_hash"] == "guide"
    assert said["human", "HUMAN", "annotator-1"].value == "response 1"
    assert said["human", "HUMAN", "annotator-1"].metadata["strength"] == "3"
    assert said["human", "HUMAN", "annotator-2"].value == "both_bad"
    rated = traces["s2/0"]
    spans = {s.name: s for s in rated.data.spans}
    assert set(spans) == {"judgement", "response 1", "response 2"}
    assert spans["judgement"].inputs == {"messages": [{"role": "user", "content": "say s2"}]}
    assert spans["judgement"].outputs == {"response 1": "text 0", "response 2": "text 1"}
    assert spans["response 2"].parent_id == spans["judgement"].span_id
    scores = {a.span_id: a.value for a in rated.info.assessments}
    assert scores == {spans["response 1"].span_id: 0.1, spans["response 2"].span_id: 0.9}
    assert {a.source.source_type for a in rated.info.assessments} == {"LLM_JUDGE"}  # not one of the run's rules


def test_the_share_of_traces_is_the_configurations_and_people_always_have_theirs(root: Path) -> None:
    report = replace(
        step(1),
        judged=(*(judged([0.1, 0.9], f"g{i}") for i in range(6)), human("asked", Vote("", "tie"))),
    )
    for number, expected in ((0, {"asked/0"}), (2, {"g0/0", "g1/0", "asked/0"})):
        name = f"share-{number}"
        tracker = Tracker.open(config_for(root, name, tracking={"trace_judgements": number}), root / name)
        tracker.log_step(report)
        tracker.finish("FINISHED")
        run = client(tracker).get_run(tracker.run_id)
        found = client(tracker).search_traces(
            locations=[run.info.experiment_id], run_id=tracker.run_id, max_results=50
        )  # fmt: skip
        assert {t.info.tags["rondo.group"] for t in found} == expected
        erased = next(t for t in found if t.info.tags["rondo.group"] == "asked/0")
        assert {a.source.source_id for a in erased.info.assessments} == {"human", "erased"}


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


def test_the_final_model_is_in_the_registry_with_its_lineage_and_answers(
    root: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    warnings: list[str] = []

    def run(name: str, wins: int, judge: str = "vader", model: Path = tiny_model) -> Tracker:
        tracker = Tracker.open(config_for(root, name), root / name, warn=warnings.append)
        tracker.log_inputs(config_for(root, name))
        tracker.log_step(step(1))
        won = replace(JUDGED, judge=judge, win_rate=WinRate(wins, 0, 10 - wins, wins / 10, 0.1, 0.9))
        tracker.log_eval(replace(EVAL, step=1, judges=(won,)))
        tracker.log_model(model, "rondo-model")
        tracker.log_model(model, "rondo-model")  # told twice, registered once
        tracker.finish("FINISHED")
        return tracker

    capfd.readouterr()
    first = run("model", wins=8)
    assert capfd.readouterr().err == ""
    run("model-2", wins=6)
    assert warnings == []
    run("model-3", wins=9, judge="another")
    assert "version 1 stays `best`" in warnings[-1]
    run("model-4", wins=9, model=root / "no-model")
    assert any("refused model of step 1" in w and "no-model" in w for w in warnings)

    import mlflow

    store = client(first)
    versions = {str(v.version): v for v in store.search_model_versions("name = 'rondo-model'")}
    assert set(versions) == {"1", "2", "3"}
    aliases = store.get_registered_model("rondo-model").aliases
    assert {k: str(v) for k, v in aliases.items()} == {"candidate": "3", "best": "1"}
    tags = versions["1"].tags
    assert tags["rondo.config_hash"] == config_hash(config_for(root, "model"))
    assert tags["rondo.reference"] == "/models/x"
    assert tags["rondo.version"] == "0.1"
    assert tags["rondo.judge." + content_id("test")[:8]] == "test 0"
    assert tags["rondo.data.training"].startswith("train ")
    assert float(tags["rondo.eval.win_rate"]) == 0.8
    assert len(tags["rondo.git.commit"]) >= 7
    assert versions["1"].run_id == first.run_id
    assert mlflow.active_run() is None
    experiment = store.get_run(first.run_id).info.experiment_id
    logged = {m.model_id: m for m in store.search_logged_models([experiment])}
    assert sorted(str(m.status) for m in logged.values()) == ["READY"] * 3
    assert all(str(root / "mlartifacts") in m.artifact_location for m in logged.values())
    model = mlflow.pyfunc.load_model("models:/rondo-model@candidate")
    answer = model.predict({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4})
    assert answer[0]["usage"]["completion_tokens"] <= 4


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
        assert free_port(port) > port
