"""What a run tells Prometheus, with a stand-in for Ray's instruments."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from pipelines.metrics import METRICS, Metric, Metrics
from preference.reports import EvalReport, Judged, ProbeMetrics, SampleMetrics, StageTime, StepReport
from preference.types import Fate, Version
from preference.winrate import WinRate
from tests.factories import JUDGING, TRAINED

NAMES = {m.name: m for m in METRICS}


@dataclass
class Recorded:
    """Keeps what would go to Ray, as Ray would take it: known labels only, counters grow."""

    values: dict[str, dict[tuple[str, ...], list[float]]] = field(default_factory=lambda: defaultdict(dict))
    made: list[str] = field(default_factory=list)

    def make(self, metric: Metric) -> Any:
        self.made.append(metric.name)
        owner = self

        class Instrument:
            def record(self, value: float, labels: dict[str, str]) -> None:
                assert set(labels) == {"run", *metric.labels}
                assert labels["run"] == "r"
                assert isinstance(value, float)
                assert not math.isnan(value)
                assert metric.kind != "counter" or value > 0
                key = tuple(labels[name] for name in metric.labels)
                owner.values[metric.name].setdefault(key, []).append(value)

        return Instrument()

    def of(self, name: str, *labels: str) -> list[float]:
        return self.values[name].get(labels, [])


def step(**changes: Any) -> StepReport:
    report = StepReport(
        step=3,
        version=Version(0, 3),
        fates={Fate.TRAINED: 12, Fate.TIED: 3, Fate.WAITING: 1},
        stages=(StageTime("sample", 5.0, 500), StageTime("train", 4.0, 100), StageTime("load", 0.5, 0)),
        seconds=9.5,
        sample=SampleMetrics(0.6, 0.3, 47.0, 0.8, 90.0, JUDGING),
        probe=ProbeMetrics(0.4, 4.5, 8),
        train=TRAINED,
        ages=(0, 1, 2),
        rows=(),
    )
    return replace(report, **changes)


@pytest.fixture
def told() -> Recorded:
    return Recorded()


@pytest.fixture
def metrics(told) -> Metrics:
    return Metrics("r", 2, told.make)


def test_an_iteration(metrics, told):
    metrics.step_done(step())
    assert told.of("rondo_steps") == [1]
    assert told.of("rondo_step") == [3]
    assert told.of("rondo_step_seconds") == [9.5]
    assert told.of("rondo_attempt") == [2]
    assert told.of("rondo_pairs") == [TRAINED.items]
    assert told.of("rondo_stage_seconds", "sample") == [5]
    assert told.of("rondo_tokens", "sample") == [500]
    assert told.of("rondo_tokens", "load") == []  # no tokens: no sample of a counter
    assert told.of("rondo_prompts", "trained") == [12]
    assert told.of("rondo_prompts", "waiting") == [1]
    assert told.of("rondo_human_backlog") == [1]
    assert told.of("rondo_pair_age_versions") == [1]
    assert told.of("rondo_score") == [0.6]
    assert told.of("rondo_kl_nats") == [4.5]  # the held-out probe's, which no selection of pairs biases
    assert told.of("rondo_loss") == [TRAINED.loss]


def test_judgements_add_up_whatever_came_of_them(metrics, told):
    judge = replace(JUDGING, judgements=20, failed=3, abstained=2, flips=0.25, cost=1.5)
    metrics.step_done(step(sample=SampleMetrics(0.6, 0.3, 47.0, 0.8, 90.0, judge)))
    counts = {r: told.of("rondo_judgements", r) for r in ("verdict", "failed", "abstained")}
    assert counts == {"verdict": [15], "failed": [3], "abstained": [2]}
    assert told.of("rondo_judge_failure_rate") == [0.15]
    assert told.of("rondo_judge_flip_rate") == [0.25]
    assert told.of("rondo_judge_cost") == [1.5]


def test_what_is_not_defined_is_not_recorded(metrics, told):
    nothing = replace(JUDGING, judgements=0, flips=math.nan, cost=0.0)
    metrics.step_done(step(train=None, probe=None, ages=(), sample=SampleMetrics(math.nan, 0, 0, 0, 0, nothing)))
    silent = (
        "loss",
        "kl_nats",
        "pairs",
        "pair_age_versions",
        "score",
        "judge_failure_rate",
        "judge_flip_rate",
        "judge_cost",
    )
    assert [n for n in silent if told.of(f"rondo_{n}")] == []
    assert told.of("rondo_step") == [3]


def test_training_from_files_has_no_samples(metrics, told):
    metrics.step_done(step(sample=None, probe=None))
    assert told.of("rondo_kl_nats") == [TRAINED.kl]
    assert told.of("rondo_score") == []


def test_a_queue_empties_with_its_stage(metrics, told):
    metrics.stage(3, "sample", 4, 16, 100)
    metrics.stage(3, "sample", 16, 16, 400)
    metrics.stage(3, "train", 0, 14, 2000)
    metrics.step_done(step())
    assert told.of("rondo_queue_items", "sample") == [12, 0, 0]
    assert told.of("rondo_queue_items", "train") == [14, 0]


def test_evaluations_and_faults(metrics, told):
    won = Judged("vader", WinRate(9, 0, 1, 0.9, 0.6, 0.98), 0.8, 0.46, 0.95)
    metrics.evaluated(EvalReport(3, Version(0, 3), (won, replace(won, judge="other")), 1.0, 1.0, 2.0, (), 1.0))
    metrics.fault("sampler")
    metrics.fault("sampler")
    assert told.of("rondo_win_rate", "vader") == told.of("rondo_win_rate", "other") == [0.9]
    assert told.of("rondo_faults", "sampler") == [1, 1]


def test_an_instrument_is_made_once_and_only_when_needed(metrics, told):
    assert told.made == []  # Ray may not be joined yet
    metrics.step_done(step())
    metrics.step_done(step(step=4))
    assert len(set(told.made)) == len(told.made)
    assert set(told.made) <= set(NAMES)


def test_names_are_unique_and_prometheus():
    from ray.util.metrics import _VALID_METRIC_NAME_RE

    assert len(NAMES) == len(METRICS)
    assert all(_VALID_METRIC_NAME_RE.match(n) and n.startswith("rondo_") for n in NAMES)
    assert not any(n.endswith(("_total", "_count", "_sum", "_bucket")) for n in NAMES)
