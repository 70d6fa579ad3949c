"""What real runs leave to look at: traces, lineage, reports of finished and stopped runs, comparison, diagnosis."""

from pathlib import Path

from click.testing import CliRunner

from pipelines.cli import main
from pipelines.ledger.ledger import read_record
from pipelines.look.figures import run_figures
from pipelines.look.report import load
from tests.integration.conftest import journal, mlflow


def test_a_finished_run_has_traces_lineage_and_every_figure(finished) -> None:
    store, run = mlflow(finished.directory)
    judged = [r for r in journal(finished.directory, "judgements") if r["state"] == "decided"]
    traces = store.search_traces(locations=[run.info.experiment_id], run_id=run.info.run_id, max_results=100)
    assert {t.info.tags["rondo.group"] for t in traces} == {r["group"] for r in judged}  # four prompts a step
    ratings = {j["candidate_id"]: j["value"] for r in judged for j in r["judgements"]}
    for trace in traces:
        assert len(trace.data.spans) == 4  # the prompt and its three responses
        said = {a.source.source_type for a in trace.info.assessments}
        assert said == {"CODE"}
        names = {s.span_id: s.attributes.get("id") for s in trace.data.spans}
        assert {names[a.span_id]: a.value for a in trace.info.assessments}.items() <= ratings.items()
    version = store.get_model_version_by_alias("whole", "candidate")
    assert store.get_model_version_by_alias("whole", "best").version == version.version
    record = read_record(finished.directory)
    assert record is not None
    assert version.tags["rondo.config_hash"] == record.config_hash
    assert version.tags["rondo.version"] == "0.3"
    trained = {r["step"] for r in journal(finished.directory, "steps") if r["event"] == "trained"}
    assert [p.step for p in store.get_metric_history(run.info.run_id, "time/iteration")] == sorted(trained)
    assert {i.tags[0].value for i in run.inputs.dataset_inputs} == {"training", "heldout", "pairs"}
    assert float(run.data.tags["cluster.CPU"]) == 2
    assert run.data.tags["resources.trainer.actors"] == "2"
    assert "resources.trainer.actors" not in run.data.params
    _, measured = load(finished.directory)
    assert {"reward_vs_kl", "win_rate", "length", "drift", "ages", "timeline", "judge"} - {"judge"} <= set(
        run_figures(measured.history, measured.timeline, measured.ages)
    )
    for stages in measured.timeline.values():
        began = {s.name: s.began for s in stages}
        assert began["sample"] <= began["train"] <= began["publish"]
    evaluation = measured.last_evaluation
    assert evaluation is not None
    assert len(evaluation.prompts) == finished.config.evaluation.prompts


def test_both_runs_can_be_reported_compared_and_diagnosed(finished, stopped, tmp_path: Path) -> None:
    def rondo(*words: object) -> str:
        done = CliRunner().invoke(main, [*map(str, words)])
        assert done.exit_code == 0, done.output
        return done.output

    rondo("report", finished.directory, "--html", tmp_path / "finished.html")
    rondo("report", stopped.directory, "--html", tmp_path / "stopped.html")
    assert "Finished: 3 of 3 steps" in (tmp_path / "finished.html").read_text()
    page = (tmp_path / "stopped.html").read_text()
    assert "Stopped after 2 of 3 steps" in page
    assert "killed" in page
    shown = rondo("compare", finished.directory, stopped.directory, "--html", tmp_path / "both.html")
    assert "How they ended" in shown
    assert "Not finished: stopped" in shown
    rondo("inspect", finished.directory)
    store, run = mlflow(finished.directory)
    assert 0 < run.data.metrics["inspect/data/distinct_1"] <= 1
    assert "inspect/lengths.png" in {f.path for f in store.list_artifacts(run.info.run_id, "inspect")}
    assert rondo("sync", stopped.directory).strip() == "MLflow has everything"
