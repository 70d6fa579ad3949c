"""What a run tells Prometheus: figures of the loop beside Ray's own, through the metrics port of the driver's node.

Ray puts ``ray_`` before every name and ``_total`` behind a counter's (``exported``). It knows only the buckets of a
histogram, and makes its sum from their middles: what is added up or averaged is a counter. A gauge lives with its
process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from preference.reports import EvalReport, JudgeMetrics, StepReport, TrainMetrics
from preference.types import Fate


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as Prometheus knows it; every metric has the label ``run`` besides ``labels``."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()

    @property
    def exported(self) -> tuple[str, ...]:
        """The names that a scrape finds."""
        name = f"ray_{self.name}"
        match self.kind:
            case "counter":
                return (f"{name}_total",)
            case "gauge":
                return (name,)
        return tuple(f"{name}_{part}" for part in ("bucket", "sum", "count"))


STEPS = Metric("rondo_steps", "counter", "Iterations done, those without a pair included")
PAIRS = Metric("rondo_pairs", "counter", "Pairs (or labelled responses) trained on")
PROMPTS = Metric("rondo_prompts", "counter", "Prompts by what became of them", ("fate",))
TOKENS = Metric("rondo_tokens", "counter", "Tokens that a stage worked on", ("stage",))
STAGE_SECONDS = Metric(
    "rondo_stage_seconds", "counter", "Wall time of a stage, seconds; stages may overlap", ("stage",)
)
STEP_SECONDS = Metric("rondo_step_seconds", "histogram", "Wall time of an iteration, seconds")
STEP = Metric("rondo_step", "gauge", "Newest optimizer step")
QUEUE = Metric("rondo_queue_items", "gauge", "Items that a running stage has still to do", ("stage",))
AGE = Metric("rondo_pair_age_versions", "gauge", "Mean age of the newest batch's pairs, in policy versions")
ATTEMPT = Metric("rondo_attempt", "gauge", "Which attempt at the run this is; 1 is the first")
LOSS = Metric("rondo_loss", "gauge", "Training loss of the newest step")
MARGIN = Metric("rondo_reward_margin", "gauge", "Mean reward margin of chosen over rejected, nats")
KL = Metric("rondo_kl_nats", "gauge", "KL of the policy to the reference, nats a response")
SCORE = Metric("rondo_score", "gauge", "Mean judge score of the newest samples")
WIN_RATE = Metric("rondo_win_rate", "gauge", "Held-out win rate against the initial policy", ("judge",))
JUDGEMENTS = Metric("rondo_judgements", "counter", "Judgements by what came of them", ("result",))
FAILURE_RATE = Metric("rondo_judge_failure_rate", "gauge", "Share of the newest step's judgements that failed")
FLIP_RATE = Metric("rondo_judge_flip_rate", "gauge", "Share of its verdicts whose two orders contradict each other")
COST = Metric("rondo_judge_cost", "counter", "Spent on judges, in the currency of their prices")
HUMAN_BACKLOG = Metric("rondo_human_backlog", "gauge", "Prompts of the newest step that people have not decided")
FAULTS = Metric("rondo_faults", "counter", "Actors that were lost and replaced", ("stage",))

METRICS = (
    STEPS, PAIRS, PROMPTS, TOKENS, STAGE_SECONDS, STEP_SECONDS, STEP, QUEUE, AGE, ATTEMPT, LOSS, MARGIN, KL, SCORE,
    WIN_RATE, JUDGEMENTS, FAILURE_RATE, FLIP_RATE, COST, HUMAN_BACKLOG,
    FAULTS,
)  # fmt: skip
_SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]


class Instrument(Protocol):
    """Where the values of one metric go."""

    def record(self, value: float, labels: dict[str, str]) -> None: ...


class Metrics:
    """An ``Observer`` that keeps the metrics of one run current. Ray drops what it is told before it is joined."""

    def __init__(self, run: str, attempt: int, make: Callable[[Metric], Instrument] | None = None) -> None:
        self._run, self._attempt = run, attempt
        self._make = make or _RayInstrument
        self._instruments: dict[str, Instrument] = {}

    def stage(self, step: int, name: str, done: int, total: int, tokens: int) -> None:
        self._record(QUEUE, max(total - done, 0), stage=name)

    def step_done(self, report: StepReport) -> None:
        self._record(STEPS, 1)
        self._record(STEP, report.step)
        self._record(STEP_SECONDS, report.seconds)
        self._record(ATTEMPT, self._attempt)
        for stage in report.stages:
            self._record(STAGE_SECONDS, stage.seconds, stage=stage.name)
            self._record(TOKENS, stage.tokens, stage=stage.name)
            self._record(QUEUE, 0, stage=stage.name)
        for fate, count in report.fates.items():
            self._record(PROMPTS, count, fate=fate.value)
        self._record(HUMAN_BACKLOG, report.fates.get(Fate.WAITING, 0))
        if report.ages:
            self._record(AGE, sum(report.ages) / len(report.ages))
        if report.sample is not None:
            self._record(SCORE, report.sample.score)
            self._judged(report.sample.judge)
        if report.train is not None:
            self._record(PAIRS, report.train.items)
            self._record(LOSS, report.train.loss)
            self._record(MARGIN, report.train.rewards_margins)
            self._record(KL, report.probe.kl if report.probe is not None else report.train.kl)

    def _judged(self, judge: JudgeMetrics) -> None:
        good = judge.judgements - judge.failed - judge.abstained
        for result, count in (("verdict", good), ("failed", judge.failed), ("abstained", judge.abstained)):
            self._record(JUDGEMENTS, count, result=result)
        self._record(FAILURE_RATE, judge.failed / judge.judgements if judge.judgements else math.nan)
        self._record(FLIP_RATE, judge.flips)
        self._record(COST, judge.cost)

    def evaluated(self, report: EvalReport) -> None:
        for judged in report.judges:
            self._record(WIN_RATE, judged.win_rate.rate, judge=judged.judge)

    def heldout(self, step: int, metrics: TrainMetrics) -> None:
        """Held-out figures of training from files are in MLflow; nothing to alert on."""

    def message(self, text: str) -> None:
        """Words are no metric."""

    def fault(self, stage: str) -> None:
        """An actor of ``stage`` was lost and replaced."""
        self._record(FAULTS, 1, stage=stage)

    def _record(self, metric: Metric, value: float, **labels: str) -> None:
        """Record a value; one that is not defined leaves the metric as it was."""
        if math.isnan(value) or (metric.kind == "counter" and value <= 0):
            return
        if metric.name not in self._instruments:
            self._instruments[metric.name] = self._make(metric)
        self._instruments[metric.name].record(float(value), {"run": self._run, **labels})


class _RayInstrument:
    """A metric of ``ray.util.metrics``, which drops what is recorded before the cluster is joined."""

    def __init__(self, metric: Metric) -> None:
        from ray.util import metrics

        keys = ("run", *metric.labels)
        match metric.kind:
            case "counter":
                self._set = metrics.Counter(metric.name, metric.meaning, keys).inc
            case "gauge":
                self._set = metrics.Gauge(metric.name, metric.meaning, keys).set
            case "histogram":
                self._set = metrics.Histogram(metric.name, metric.meaning, _SECONDS, keys).observe

    def record(self, value: float, labels: dict[str, str]) -> None:
        self._set(value, labels)
