"""Who watches a run: the loop's one Observer, and what of it has to be remembered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from pipelines.ledger.record import RunRecord, write_record
from pipelines.look import plots
from pipelines.metrics import Metrics
from pipelines.progress import Progress
from pipelines.tracking import Tracker
from preference.reports import EvalReport, StepReport, TrainMetrics


class Watchers:
    """Display, MLflow and Prometheus behind the loop's one Observer; remembers the last step that was logged."""

    def __init__(self, progress: Progress, tracker: Tracker, run_dir: Path, record: RunRecord) -> None:
        self._progress, self._tracker, self._run_dir, self._record = progress, tracker, run_dir, record
        self._metrics = Metrics(run_dir.name, record.attempts)
        self.steps = 0  # of the whole run; known once the data is read
        self.last_evaluation: EvalReport | None = None
        self.measured: Callable[[int, Mapping[str, float]], None] = lambda step, values: None
        """Is told what was measured at a step: the best checkpoints are chosen by it."""

    def stage(self, step: int, name: str, done: int, total: int, tokens: int) -> None:
        self._progress.stage(step, name, done, total, tokens)
        self._metrics.stage(step, name, done, total, tokens)

    def step_done(self, report: StepReport) -> None:
        self._progress.step_done(report, self.steps)
        self._metrics.step_done(report)
        self.measured(report.step, plots.step_metrics(report))
        if report.step > self._record.logged_step:  # a replayed step is in MLflow already
            self._tracker.log_step(report)
            self._record = replace(self._record, logged_step=report.step)
            write_record(self._run_dir, self._record)

    def incarnate(self) -> int:
        """Number of the incarnation of the weights that begins: no other of the run had it."""
        number = max(self._record.incarnations, self._record.attempts - 1)
        self._record = replace(self._record, incarnations=number + 1)
        write_record(self._run_dir, self._record)
        return number

    def finished(self) -> None:
        """The run is at its end and exported: a later attempt has nothing to do."""
        self._record = replace(self._record, finished=self.steps)
        write_record(self._run_dir, self._record)

    def evaluated(self, report: EvalReport) -> None:
        self.last_evaluation = report
        self.measured(report.step, plots.eval_metrics(report))
        self._tracker.log_eval(report)
        self._metrics.evaluated(report)
        self._progress.evaluated(report)

    def heldout(self, step: int, metrics: TrainMetrics) -> None:
        self.measured(step, plots.heldout_metrics(metrics))
        self._tracker.log_heldout(step, metrics)
        self._progress.heldout(step, metrics)

    def message(self, text: str) -> None:
        self._progress.message(text)

    def fault(self, stage: str) -> None:
        self._metrics.fault(stage)
