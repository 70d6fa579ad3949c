"""How each event becomes something in MLflow. Sending an event a second time changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.look.figures import run_figures
from pipelines.tracking.client import Warn, brief, may_pass
from pipelines.tracking.events import (
    Began,
    Ended,
    Evaluated,
    Exported,
    HeldOutLoss,
    Judged,
    Read,
    Stepped,
    Table,
    Tagged,
    read_events,
)
from pipelines.tracking.history import Record
from pipelines.tracking.outbox import Service
from pipelines.tracking.registry import register
from pipelines.tracking.traces import send_trace

_TABLES = 100  # tables the UI is told about: they are named in one tag, and a tag holds 8000 characters


class Senders:
    """Everything that is sent about one run."""

    def __init__(self, client: Any, run_id: str, run_dir: Path, warn: Warn) -> None:
        self._client, self._run_id, self._run_dir, self._warn = client, run_id, run_dir, warn

    def service(self) -> Service:
        """Three lanes, for the parts of an MLflow server that fail apart: database, artifact store, trace store."""
        metrics: Mapping[type[Any], Callable[[Any], None]] = {
            Began: self._began,
            Tagged: lambda e: self._tags(e.tags),
            Read: self._inputs,
            Stepped: lambda e: self._metrics(e.metrics, e.step, e.at_ms),
            HeldOutLoss: lambda e: self._metrics(e.metrics, e.step, e.at_ms),
            Evaluated: self._evaluated,
            Ended: self._ended,
        }
        artifacts: Mapping[type[Any], Callable[[Any], None]] = {
            Table: self._table,
            Exported: self._model,
            Ended: lambda e: self._plots(),
        }
        traces: Mapping[type[Any], Callable[[Any], None]] = {Judged: self._judged}
        return Service("MLflow", {"metrics": metrics, "artifacts": artifacts, "traces": traces}, may_pass, brief)

    @cached_property
    def _experiment(self) -> str:
        return str(self._client.get_run(self._run_id).info.experiment_id)

    def _began(self, event: Began) -> None:
        self._client.update_run(self._run_id, status="RUNNING")
        began = datetime.fromtimestamp(event.at_ms / 1000, UTC).isoformat(timespec="seconds")
        self._tags({**event.tags, "attempt": str(event.attempt), "attempt.began": began})

    def _ended(self, event: Ended) -> None:
        self._client.set_terminated(self._run_id, event.status, event.at_ms)

    def _tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self._run_id, tags=[RunTag(key, value[:8000]) for key, value in tags.items()])

    def _metrics(self, values: Mapping[str, float], step: int, at_ms: int) -> None:
        from mlflow.entities import Metric

        # The time is the measurement's: the same metric at the same step and time is one row, however often it is sent.
        self._client.log_batch(self._run_id, [Metric(name, value, at_ms, step) for name, value in values.items()])

    def _evaluated(self, event: Evaluated) -> None:
        self._metrics(event.metrics, event.step, event.at_ms)
        names = (j.judge for j in event.judges)
        self._tags(dict(zip(("judge", "judge_second"), names, strict=False)))

    def _inputs(self, event: Read) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(
                    name=file.name,
                    digest=file.digest,
                    source_type="local",
                    source=json.dumps({"uri": file.path}),
                    profile=json.dumps({} if file.rows is None else {"num_rows": file.rows}),
                ),
                [InputTag("mlflow.data.context", file.context)],
            )
            for file in event.files
        ]
        self._client.log_inputs(self._run_id, datasets=inputs)

    def _table(self, event: Table) -> None:
        """What ``client.log_table`` writes, but a repeated delivery replaces the table instead of doubling its rows."""
        self._client.log_text(self._run_id, event.json, event.path)
        tables = json.loads(self._client.get_run(self._run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
        entry = {"path": event.path, "type": "table"}
        tables = [*[t for t in tables if t != entry][1 - _TABLES :], entry]
        self._client.set_tag(self._run_id, "mlflow.loggedArtifacts", json.dumps(tables))

    def _plots(self) -> None:
        """The whole history of the run, earlier attempts included."""
        record = Record.of(read_events(self._run_dir))
        for name, figure in run_figures(record.history, record.timeline, record.ages).items():
            self._client.log_figure(self._run_id, figure, f"plots/{name}.png")

    def _model(self, event: Exported) -> None:
        register(self._client, self._run_id, event, self._warn)

    def _judged(self, event: Judged) -> None:
        send_trace(self._run_id, self._experiment, event)
