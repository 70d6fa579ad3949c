"""What goes to MLflow when no driver is at work: what waited, and what was found out about a run afterwards."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.tracking.client import TrackingError, Warn, brief, connect, public
from pipelines.tracking.events import EVENTS, Began, read_events
from pipelines.tracking.outbox import Outbox
from pipelines.tracking.senders import Senders
from pipelines.tracking.tracker import CURSOR


def send_waiting(run_dir: Path, uri: str, warn: Warn, timeout_s: float = 600.0) -> list[str]:
    """Send MLflow what it has not got of a run that no process works on; returns the keys of what it still has not got.

    ``uri``: where MLflow is, if not where the run's last attempt had it. Raises TrackingError, or DataError where there
    is no run or it is under way (which sends for itself).
    """
    from pipelines.data.runs import finished_run

    finished_run(run_dir)
    run_id, client = _find(run_dir, uri)
    if not (run_dir / EVENTS).is_file():
        raise TrackingError(f"{run_dir} has no {EVENTS}: nothing was measured, or by another version of Rondo")
    service = Senders(client, run_id, run_dir, warn).service()
    outbox = Outbox(service, run_dir / EVENTS, run_dir / CURSOR, run_id, warn)
    outbox.drain(timeout_s)
    missing = outbox.missing()
    outbox.close()
    return missing


def log_diagnosis(run_dir: Path, scalars: Mapping[str, float], figures: Mapping[str, Any]) -> str:
    """Put a diagnosis of the run's pairs to its other metrics and figures; returns the MLflow run's id.

    Raises TrackingError where that fails.
    """
    run_id, client = _find(run_dir, "")
    step = max((e.step for e in read_events(run_dir) if hasattr(e, "step")), default=0)
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    try:
        client.log_batch(run_id, [Metric(f"inspect/{name}", value, now, step) for name, value in scalars.items()])
        for name, figure in figures.items():
            client.log_figure(run_id, figure, f"inspect/{name}.png")
    except Exception as error:
        raise TrackingError(f"MLflow did not take the diagnosis: {brief(error)}") from error
    return run_id


def _find(run_dir: Path, uri: str) -> tuple[str, Any]:
    """(id of the run, client of its MLflow)."""
    from pipelines.data.runs import record_of

    record = record_of(run_dir)
    if not record.mlflow_run:
        raise TrackingError(f"{run_dir} never got as far as MLflow: go on with the run (--resume=auto)")
    tags = [e.tags for e in read_events(run_dir) if isinstance(e, Began)]
    uri = (
        uri
        or (tags[-1].get("tracking.uri", "") if tags else "")
        or f"sqlite:///{run_dir.resolve().parent / 'mlflow.db'}"
    )
    if "***@" in uri:
        raise TrackingError(f"the password of MLflow at {uri} is not kept with the run: give the whole address (--uri)")
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise TrackingError(
            f"MLflow's database {uri} does not exist; where the run was copied from another place, give --uri"
        )
    try:
        client = connect(uri)
        client.get_run(record.mlflow_run)
    except Exception as error:
        raise TrackingError(f"MLflow at {public(uri)} fails: {brief(error)}") from error
    return record.mlflow_run, client
