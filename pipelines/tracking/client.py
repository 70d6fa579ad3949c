"""MLflow's client as this program uses it: quiet, impatient, and with errors in one line. The import takes seconds."""

from __future__ import annotations

import logging
import os
import re
import shlex
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Warn = Callable[[str], None]
_PERMANENT = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "BAD_REQUEST")  # no use trying
_TOO_MUCH = (400, 411, 413, 414, 422)  # what proxies answer to a request that they will never let through


class TrackingError(Exception):
    """MLflow cannot be used; the message says what to do."""


def connect(uri: str) -> Any:
    """An MLflow client with MLflow's own chatter, telemetry and minutes-long HTTP retries turned off."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    import mlflow

    for name in (
        "mlflow",
        "alembic",
        "sqlalchemy",
        "urllib3.connectionpool",
    ):  # also where quiet_driver took MLflow's handlers away
        logging.getLogger(name).setLevel(logging.CRITICAL)
    mlflow.set_tracking_uri(uri)  # Model.log and the registry know no other way to be told
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: Any, name: str, location: str | None) -> str:
    """The experiment of that name, made if it is missing; raises TrackingError if it was deleted."""
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except Exception:
        found = client.get_experiment_by_name(name)  # it exists, or another run created it at this moment
        if found is None:
            raise
    if found.lifecycle_stage == "deleted":
        raise TrackingError(f"tracking.experiment: {name!r} is deleted in MLflow; restore it or choose another name")
    return str(found.experiment_id)


def run_exists(client: Any, run_id: str, warn: Warn) -> bool:
    """Whether the store still has the run; losing it must not make a run impossible to resume."""
    try:
        if client.get_run(run_id).info.lifecycle_stage == "active":
            return True
    except Exception as error:
        if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
            raise
    warn(f"MLflow run {run_id} no longer exists: a new one is started, and all that was measured is sent to it")
    return False


def parent_run(client: Any, experiment: str, name: str) -> str:
    """The run of that name that others are nested under, made if it is missing."""
    found = client.search_runs([experiment], f"tags.`rondo.parent` = '{name}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    run = client.create_run(experiment, run_name=name, tags={"rondo.parent": name})
    client.set_terminated(run.info.run_id)  # nothing is ever measured by it
    return str(run.info.run_id)


def may_pass(error: Exception) -> bool:
    """Whether another attempt can succeed: not for what MLflow refuses, nor for a bug on this side of it."""
    if _status(error) in _TOO_MUCH:
        return False
    code = getattr(error, "error_code", None)
    return isinstance(error, OSError) if code is None else code not in _PERMANENT


def _status(error: Exception) -> int | None:
    """The HTTP status that the error comes from: of an artifact's upload, or named in what MLflow says."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    named = re.search(r"failed with error code (\d{3})\b", str(error))
    return status if isinstance(status, int) else int(named[1]) if named else None


def public(text: str) -> str:
    """Without a password inside a URI, which is for nobody's eyes."""
    return re.sub(r"(?<=://)[^/@\s]+@", "***@", text)


def brief(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {public(str(error).strip().partition(chr(10))[0][:300])}"


def ui_command(uri: str) -> str:
    """The one command that shows runs: starts MLflow's UI on a database, or names the server."""
    if uri.startswith(("http://", "https://")):
        return f"open {public(uri)}"
    program = Path(sys.executable).parent / "mlflow"
    if program.is_relative_to(Path.cwd()):
        program = program.relative_to(Path.cwd())
    return shlex.join([str(program), "ui", "--backend-store-uri", public(uri), "--port", str(free_port(5000))])


def free_port(first: int) -> int:
    """The first port from ``first`` on that nobody listens on here: the shown command should work as shown."""
    for port in range(first, first + 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    return first
