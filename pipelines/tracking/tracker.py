"""The tracker of a run that is under way."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from configs.judges import RuleJudge, singles
from configs.loading import config_hash, flatten, scientific
from configs.runs import RunConfig, TrainingConfig
from pipelines import facts
from pipelines.ledger.journal import LedgerError
from pipelines.look import plots
from pipelines.look.dictionary import is_known
from pipelines.tracking import lineage
from pipelines.tracking.client import (
    TrackingError,
    Warn,
    brief,
    connect,
    experiment_id,
    may_pass,
    parent_run,
    public,
    run_exists,
    ui_command,
)
from pipelines.tracking.events import (
    Answer,
    Began,
    Ended,
    Evaluated,
    Event,
    EventLog,
    Exported,
    HeldOutLoss,
    Judged,
    Read,
    Stepped,
    Table,
    Tagged,
    clean,
    read_events,
)
from pipelines.tracking.history import Record
from pipelines.tracking.outbox import Outbox
from pipelines.tracking.senders import Senders
from preference.reports import BeforeAfter, EvalReport, SampleRow, StepReport, TrainMetrics
from preference.types import Candidate, JudgedGroup, content_id

CURSOR = Path("tracking") / "delivered.json"
_ROWS = 256  # of a step's table of samples
_LAST_CALL_S, _REGISTER_S = 20.0, 300.0  # how long the end of a run waits for what is unsent


class Tracker:
    """One run, journaled in its directory and sent to MLflow in the background. Made by ``open``.

    No ``log_*`` waits for MLflow or raises because of it (LedgerError where the run's own disk refuses); what is told
    twice is written once.
    """

    def __init__(self, config: TrainingConfig, run_dir: Path, client: Any, run_id: str, uri: str, warn: Warn) -> None:
        self.run_id, self.uri = run_id, uri
        self._config, self._run_dir, self._warn = config, run_dir, warn
        self._log = EventLog(run_dir)
        self._attempt = 1
        self._asked: dict[str, tuple[int, int]] = {}  # groups that wait for people: step and time of the question
        for event in read_events(run_dir, warn):
            self._attempt += isinstance(event, Began)
            if isinstance(event, Judged) and event.waiting:
                self._asked[event.group] = event.asked_step, event.asked_ms
            elif isinstance(event, Judged):
                self._asked.pop(event.group, None)
        self._rules = _rules(config)
        self._unknown: set[str] = set()
        service = Senders(client, run_id, run_dir, warn).service()
        self._outbox = Outbox(service, self._log.path, run_dir / CURSOR, run_id, warn)

    @classmethod
    def open(
        cls, config: TrainingConfig, run_dir: Path, run_id: str | None = None, warn: Warn | None = None
    ) -> Tracker:
        """Create the run, or continue ``run_id``; raises TrackingError where a new one cannot be made.

        The scientific configuration is written as parameters, once; what may differ between attempts is kept current in
        tags. A run that was in MLflow before goes on while MLflow is down.
        """
        warn = warn or logging.getLogger(__name__).warning
        root = Path(config.run.root)
        uri = config.tracking.uri or f"sqlite:///{root / 'mlflow.db'}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            client = connect(uri)
            if not run_id or not run_exists(client, run_id, warn):
                run_id = _create(client, config)
        except TrackingError:
            raise
        except Exception as error:
            if not run_id or not may_pass(error):
                raise TrackingError(f"MLflow at {public(uri)} fails: {brief(error)}; check tracking.uri") from error
            warn(f"MLflow at {public(uri)} is down ({brief(error)}): the run goes on, and what it measures waits")
        tracker = cls(config, run_dir, client, run_id, uri, warn)
        tracker._put(Began(tracker._attempt, _now(), _attempt_tags(config, run_dir)))
        return tracker

    def log_cluster(self, tags: Mapping[str, str]) -> None:
        """What the attempt runs on, known once the cluster is joined."""
        self._put(Tagged(self._attempt, dict(tags)))

    def log_inputs(self, config: TrainingConfig) -> None:
        """The run's data files as dataset inputs: name, digest of the content and number of rows."""
        if files := lineage.input_files(config):
            self._put(Read(files))

    def log_step(self, report: StepReport) -> None:
        """Metrics, samples table, and judgements as traces."""
        at, judges = _now(), [j.judge for g in report.judged for j in (*g.judgements, *g.overruled)]
        ages = {age: report.ages.count(age) for age in sorted(set(report.ages))}
        metrics = self._known(plots.step_metrics(report))
        named = {j.name: j.definition_hash for j in judges}
        self._put(
            Stepped(report.step, at, str(report.version), metrics, report.stages, ages, named),
            *_table(f"samples/step-{report.step:06d}.json", report.step, report.rows[:_ROWS]),
            *self._judgements(report, at),
        )

    def log_eval(self, report: EvalReport) -> None:
        """Held-out metrics, every prompt's scores and a before/after table."""
        ids = sorted(p.prompt_id for p in report.prompts)
        heldout = content_id(scientific(self._config).get("prompts.heldout", ""), ids)
        metrics, version = self._known(plots.eval_metrics(report)), str(report.version)
        self._put(
            Evaluated(report.step, _now(), version, metrics, report.judges, heldout, report.prompts),
            *_table(f"samples/eval-{report.step:06d}.json", report.step, report.examples),
        )

    def log_heldout(self, step: int, metrics: TrainMetrics) -> None:
        """Loss and rewards on held-out items."""
        self._put(HeldOutLoss(step, _now(), self._known(plots.heldout_metrics(metrics))))

    def log_model(self, export_dir: str | Path, name: str) -> None:
        """Have a Hugging Face directory registered under ``name``, with its lineage; waits for it, not forever."""
        record = Record.of(read_events(self._run_dir))
        if pairs := lineage.pair_journal(self._config, self._run_dir):
            self._put(Read((pairs,)))
        tags = lineage.model_tags(self._config, record, pairs)
        self._put(Exported(str(Path(export_dir).resolve()), name, record.steps, tags))
        self._outbox.drain(_REGISTER_S)

    def finish(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED, after a last attempt to deliver what is waiting."""
        with suppress(LedgerError):  # a full disk: what ends the run has said so already
            self._put(Ended(self._attempt, _now(), status))
        if not self._outbox.drain(_LAST_CALL_S):
            missing = self._outbox.missing()
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            self._warn(
                f"MLFLOW IS INCOMPLETE: {len(missing)} entries of run {self.run_id} have not arrived: {shown}; "
                f"`rondo sync {self._run_dir}` or a later attempt sends what waits"
            )
        self._outbox.close()
        with suppress(LedgerError):
            self._log.close()

    def ui_command(self) -> str:
        """The one command that shows this run: starts MLflow's UI on a database, or names the server."""
        return ui_command(self.uri)

    def _put(self, *events: Event) -> None:
        if self._log.append(*events):
            self._outbox.wake()

    def _known(self, values: Mapping[str, float]) -> dict[str, float]:
        for name in sorted(n for n in values if not is_known(n) and n not in self._unknown):
            self._unknown.add(name)
            self._warn(f"metric {name!r} has no meaning in pipelines.look.dictionary and is not logged")
        return {name: float(value) for name, value in values.items() if is_known(name)}

    def _judgements(self, report: StepReport, at: int) -> Iterator[Judged]:
        """The first groups of the step, and every one that people were asked about."""
        for number, group in enumerate((*report.judged, *report.waiting)):
            name, waiting = group.group.candidates[0].id, number >= len(report.judged)
            people = waiting or name in self._asked or any(j.votes for j in group.judgements)
            if not people and number >= self._config.tracking.trace_judgements:
                continue
            asked = self._asked.setdefault(name, (report.step, at)) if waiting else self._asked.pop(name, None)
            asked_step, asked_ms = asked or (report.step, at)
            yield self._judged(report.step, asked_step, asked_ms, at, group, waiting)

    def _judged(self, step: int, asked: int, asked_ms: int, at: int, group: JudgedGroup, waiting: bool) -> Judged:
        answers = tuple(
            Answer(c.id, clean(c.text), len(c.token_ids), str(c.version_max) if isinstance(c, Candidate) else c.player)
            for c in group.group.candidates
        )
        names = {j.judge.name for j in (*group.judgements, *group.overruled)}
        sources = {n: "HUMAN" if n == "human" else "CODE" if n in self._rules else "LLM_JUDGE" for n in names}
        prompt = group.group.prompt
        return Judged(
            step, asked, asked_ms, at, group.group.candidates[0].id, prompt.id, prompt.messages, answers,
            group.judgements, group.overruled, waiting, sources,
        )  # fmt: skip


def _table(path: str, step: int, rows: Sequence[SampleRow] | Sequence[BeforeAfter]) -> Iterator[Table]:
    if rows:
        columns = ["step", *(field.name for field in fields(rows[0]))]
        data = [[step, *astuple(row)] for row in rows]
        yield Table(path, clean(json.dumps({"columns": columns, "data": data}, ensure_ascii=False)))


def _create(client: Any, config: TrainingConfig) -> str:
    from mlflow.entities import Param

    tracking = config.tracking
    location = None if tracking.uri else str(Path(config.run.root) / "mlartifacts")
    experiment = experiment_id(client, tracking.experiment, location)
    tags = {"mlflow.parentRunId": parent_run(client, experiment, tracking.parent)} if tracking.parent else {}
    run_id = str(client.create_run(experiment, run_name=config.run.name, tags=tags).info.run_id)
    params = [Param(key, value[:6000]) for key, value in scientific(config).items()]
    for start in range(0, len(params), 100):  # MLflow's limit a call, as are 6000 and 8000 characters
        client.log_batch(run_id, params=params[start : start + 100])
    return run_id


def _attempt_tags(config: TrainingConfig, run_dir: Path) -> dict[str, str]:
    """Where and with what this attempt runs: facts, and the configuration that does not define the experiment."""
    science = scientific(config)
    tags = {k: v for k, v in flatten(config).items() if k not in science}
    tags["tracking.uri"] = public(config.tracking.uri)
    about = facts.package_versions() | facts.hardware_facts() | facts.git_facts()
    tags |= about | {"run_dir": str(run_dir), "config_hash": config_hash(config)}
    return tags | {"mlflow.source.name": "rondo", "mlflow.source.git.commit": about["git.commit"]}


def _rules(config: TrainingConfig) -> set[str]:
    """Names of the judges that are plain code."""
    if not isinstance(config, RunConfig):
        return set()
    return {judge.rule for _, judge in singles("judge", config.judge) if isinstance(judge, RuleJudge)}


def _now() -> int:
    return int(time.time() * 1000)
