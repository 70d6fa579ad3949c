"""Metrics by name and figures, from reports alone."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from configs.loading import load_config
from configs.runs import RunConfig
from pipelines import facts
from pipelines.look import plots
from pipelines.look.dictionary import METRICS, is_known
from pipelines.tracking import Tracker
from pipelines.tracking.events import HeldOutLoss, read_events
from preference.reports import (
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
from tests.unit.test_config import QUICKSTART

STAGES = ("sample", "judge", "pair", "reference", "probe", "train", "publish", "load", "refresh", "checkpoint")
FULL = StepReport(
    step=2,
    version=Version(0, 2),
    fates=dict.fromkeys(Fate, 2),
    stages=tuple(StageTime(name, 2.0, 100) for name in STAGES),
    seconds=18.0,
    sample=SampleMetrics(0.5, 0.3, 47.0, 0.8, 90.0, JUDGING),
    probe=ProbeMetrics(0.4, 1.5, 8),
    train=replace(TRAINED, scalars={"bonus": 7.0, "kl": 9.0}),
    ages=(0, 1, 2),
    rows=(),
)
JUDGED = Judged("a", WinRate(9, 0, 1, 0.9, 0.6, 0.98), 0.8, 0.46, 0.95)
EVAL = EvalReport(4, Version(0, 4), (JUDGED, replace(JUDGED, judge="b")), 40.0, 42.0, 8.4, (), 20.0)


def test_every_metric_is_documented_and_every_documented_metric_is_logged() -> None:
    named = set(plots.step_metrics(FULL)) | set(plots.eval_metrics(EVAL)) | set(plots.heldout_metrics(TRAINED))
    assert all(is_known(name) for name in named)
    assert {m for m in METRICS if not m.endswith("<name>") and not m.startswith("inspect/")} <= named
    assert all(m.meaning and "\n" not in m.meaning for m in METRICS.values())


def test_metrics_carry_the_figures_of_the_report() -> None:
    values = plots.step_metrics(FULL)
    assert (values["policy/age"], values["policy/age_max"]) == (1.0, 2)
    assert values["tokens_per_s/train"] == 50.0
    assert values["objective/bonus"] == 7.0
    assert values["objective/kl"] == 1.5  # of the held-out probe: a scalar of the same name does not take its place
    assert sum(values[f"prompts/{fate}"] for fate in Fate) == sum(FULL.fates.values())


def test_a_skipped_step_has_no_training_figures_and_no_zeros_for_them() -> None:
    values = plots.step_metrics(replace(FULL, train=None, probe=None, ages=()))
    assert values["pairs/trained"] == 0
    assert not {"loss", "rewards/chosen", "objective/kl", "policy/age", "lr"} & set(values)


def test_repetition_compares_equally_many_answers() -> None:
    def rows(*texts: str) -> list[SampleRow]:
        return [SampleRow("p", "", text, 0.0, "unused", "0.0", 1) for text in texts]

    varied = rows("the cat sat on a mat", "birds fly over the sea today")
    assert plots.repetition(varied, rows("so so good so so good so so good")) == (0.0, 1.0)
    assert plots.repetition(varied, []) is None
    assert plots.repetition(rows("hi"), varied) is None


def test_names_and_facts_need_neither_mlflow_nor_matplotlib() -> None:
    code = "import sys; import pipelines.tracking; print({'mlflow', 'matplotlib'} & set(sys.modules))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_facts_name_no_host() -> None:
    found = facts.hardware_facts() | facts.package_versions() | facts.git_facts()
    assert {"hardware.cores", "hardware.memory_gb", "hardware.gpus", "package.mlflow", "git.commit"} <= set(found)
    assert all(isinstance(value, str) and value for value in found.values())


def test_a_metric_without_a_meaning_is_not_logged_and_said_once(tmp_path, monkeypatch) -> None:
    class Unsent:  # MLflow has no part in this
        def __init__(self, *service: object) -> None:
            self.wake = self.close = lambda: None

        def drain(self, seconds: float) -> bool:
            return True

    monkeypatch.setattr("pipelines.tracking.tracker.Outbox", Unsent)
    config = load_config(RunConfig, QUICKSTART, [f"run.root={tmp_path}"])
    warnings: list[str] = []
    tracker = Tracker(config, tmp_path, object(), "run", "sqlite:///nowhere", warnings.append)
    measured = plots.heldout_metrics(TRAINED)
    monkeypatch.setattr(plots, "heldout_metrics", lambda metrics: {**measured, "heldout/los": 1.0})
    tracker.log_heldout(1, TRAINED)
    tracker.log_heldout(2, TRAINED)
    tracker.finish("FINISHED")
    events = [e for e in read_events(tmp_path) if isinstance(e, HeldOutLoss)]
    assert [e.metrics for e in events] == [measured, measured]
    assert [w for w in warnings if "heldout/los" in w] == [warnings[0]]
    assert "pipelines.look.dictionary" in warnings[0]
