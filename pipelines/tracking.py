"""MLflow: parameters, metrics, tables, plots and the registered model of a run. Only this file imports mlflow.

The import takes seconds and happens in ``Tracker.open``. After that MLflow may fail without stopping a run: what could
not be delivered waits in memory for the next call, and ``finish`` says loudly what never arrived.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from configs.loading import INPUT_FILES, config_hash, flatten, scientific
from configs.runs import TrainingConfig
from pipelines import facts, plots
from pipelines.outbox import Outbox
from pipelines.plots import METRICS as METRICS
from preference.reports import BeforeAfter, EvalReport, SampleRow, StepReport, TrainMetrics

Warn = Callable[[str], None]
_CONTEXTS = {"train": "training", "heldout": "heldout"}
_TABLES = 100  # tables the UI is told about: they are named in one tag, and a tag holds 8000 characters
_PERMANENT = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")  # retrying cannot help


class TrackingError(Exception):
    """MLflow cannot be used at start-up; the message says what to do."""


class Tracker:
    """One run in MLflow. Made by ``open``; every ``log_*`` returns without raising."""

    def __init__(self, client: Any, run_id: str, uri: str, warn: Warn) -> None:
        self.run_id, self.uri = run_id, uri
        self._client, self._warn = client, warn
        self._outbox = Outbox("MLflow", warn, _may_pass, _brief)
        self._unknown: set[str] = set()
        self._last_step = 0

    @classmethod
    def open(
        cls, config: TrainingConfig, run_dir: Path, run_id: str | None = None, warn: Warn | None = None
    ) -> Tracker:
        """Create the run, or continue ``run_id``. Raises TrackingError when MLflow cannot be reached at all.

        Parameters are written once, at creation; what may differ between attempts is kept current in tags.
        """
        warn = warn or logging.getLogger(__name__).warning
        root = Path(config.run.root)
        uri = config.tracking.uri or f"sqlite:///{root / 'mlflow.db'}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            client = _connect(uri)
            from mlflow.entities import Param, RunTag

            old = _find_run(client, run_id, warn) if run_id else None
            attempt = int(old.data.tags.get("attempt", "1")) + 1 if old else 1
            everything = flatten(config) | {"tracking.uri": _public(config.tracking.uri)}
            about = facts.package_versions() | facts.hardware_facts() | facts.git_facts()
            tags = {k: v for k, v in everything.items() if k not in scientific(config)} | about
            tags |= {"attempt": str(attempt), "run_dir": str(run_dir), "config_hash": config_hash(config)}
            tags |= {"mlflow.source.name": "rondo", "mlflow.source.git.commit": about["git.commit"]}
            if old:
                new_id, params = old.info.run_id, []
                client.update_run(new_id, status="RUNNING")
            else:
                location = None if config.tracking.uri else str(root / "mlartifacts")
                experiment = _experiment(client, config.tracking.experiment, location)
                new_id = client.create_run(experiment, run_name=config.run.name).info.run_id
                params = [Param(key, value[:6000]) for key, value in (everything | about).items()]
            for start in range(0, len(params), 100):  # MLflow's limit a call, as are 6000 and 8000 characters
                client.log_batch(new_id, params=params[start : start + 100])
            client.log_batch(new_id, tags=[RunTag(key, value[:8000]) for key, value in tags.items()])
        except TrackingError:
            raise
        except Exception as error:
            raise TrackingError(f"MLflow at {_public(uri)} fails: {_brief(error)}; check tracking.uri") from error
        return cls(client, new_id, uri, warn)

    def log_step(self, report: StepReport) -> None:
        """One batch of metrics and one samples table, both at the report's step."""
        self._last_step = report.step
        self._metrics(plots.step_metrics(report), report.step)
        self._table(f"samples/step-{report.step:06d}.json", report.step, report.rows)

    def log_eval(self, report: EvalReport) -> None:
        """Held-out metrics, the judges' names as tags and a before/after table."""
        tags = dict(zip(("judge", "judge_second"), (j.judge for j in report.judges), strict=False))
        self._metrics(plots.eval_metrics(report), report.step, tags)
        self._table(f"samples/eval-{report.step:06d}.json", report.step, report.examples)

    def log_heldout(self, step: int, metrics: TrainMetrics) -> None:
        """Loss and rewards on held-out items."""
        self._metrics(plots.heldout_metrics(metrics), step)

    def log_inputs(self, config: TrainingConfig) -> None:
        """The run's data files as dataset inputs: name, digest of the content and number of rows."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for name, context in ((k, k.rpartition(".")[2]) for k in INPUT_FILES):
            path = Path(flatten(config).get(name) or ".")
            if not path.is_file():
                continue
            content = path.read_bytes() if path.is_file() else b""
            dataset = Dataset(
                name=path.stem,
                digest=hashlib.sha256(content).hexdigest()[:16],
                source_type="local",
                source=json.dumps({"uri": str(path)}),
                profile=json.dumps({"num_rows": sum(1 for line in content.splitlines() if line.strip())}),
            )
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", _CONTEXTS[context])]))
        self._deliver("data files", lambda: self._client.log_inputs(self.run_id, datasets=inputs))

    def log_plots(self) -> None:
        """Draw the whole history of the run, earlier attempts included: reward, reward against KL, win rate."""

        def send() -> None:
            history: dict[str, dict[int, float]] = {}
            for name in self._client.get_run(self.run_id).data.metrics:
                if name.startswith(("eval/", "objective/", "probe/")):
                    history[name] = {p.step: p.value for p in self._client.get_metric_history(self.run_id, name)}
            for name, figure in plots.all_figures(history).items():
                self._client.log_figure(self.run_id, figure, f"plots/{name}.png")

        self._deliver("plots", send, artifact=True)

    def log_model(self, export_dir: str | Path, name: str) -> str | None:
        """Register a Hugging Face directory under ``name``, alias "candidate"; its files are copied, never loaded.

        Returns the registry version, or None after a warning: the model itself is safe in ``export_dir``.
        """
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # MLflow prints there, whatever its logging level
                return _register(self._client, self.run_id, Path(export_dir), name, self._last_step)
        except Exception as error:
            self._outbox.lose("registered model")
            self._warn(f"MLflow did not register the model ({_brief(error)}); it is in {export_dir}")
            return None

    def finish(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED, after a last attempt to deliver what is waiting."""
        self.log_plots()
        self._deliver("end of the run", lambda: self._client.set_terminated(self.run_id, status))
        for pause in (1.0, 3.0):
            if not self._outbox.is_empty():
                time.sleep(pause)
                self._outbox.flush()
        if missing := self._outbox.missing():
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            self._warn(f"MLFLOW IS INCOMPLETE: {len(missing)} entries of run {self.run_id} never arrived: {shown}")

    def ui_command(self) -> str:
        """The one command that shows this run: starts MLflow's UI on a database, or names the server."""
        if self.uri.startswith(("http://", "https://")):
            return f"open {_public(self.uri)}"
        program = Path(sys.executable).parent / "mlflow"
        if program.is_relative_to(Path.cwd()):
            program = program.relative_to(Path.cwd())
        words = [str(program), "ui", "--backend-store-uri", _public(self.uri), "--port", str(_free_port(5000))]
        return shlex.join(words)

    def _metrics(self, values: Mapping[str, float], step: int, tags: Mapping[str, str] | None = None) -> None:
        from mlflow.entities import Metric, RunTag

        for name in sorted(n for n in values if not plots.is_known(n) and n not in self._unknown):
            self._unknown.add(name)
            self._warn(f"metric {name!r} has no meaning in pipelines.tracking.METRICS and is not logged")
        now = int(time.time() * 1000)  # of the measurement, not of a delivery that had to be repeated
        metrics = [Metric(name, float(value), now, step) for name, value in values.items() if plots.is_known(name)]
        run_tags = [RunTag(key, value) for key, value in (tags or {}).items()]
        self._deliver(f"metrics of step {step}", lambda: self._client.log_batch(self.run_id, metrics, tags=run_tags))

    def _table(self, path: str, step: int, rows: Sequence[SampleRow] | Sequence[BeforeAfter]) -> None:
        """What ``client.log_table`` writes, but a repeated delivery replaces the table instead of doubling its rows."""
        if not rows:
            return
        columns = ["step", *(field.name for field in fields(rows[0]))]
        text = json.dumps({"columns": columns, "data": [[step, *astuple(row)] for row in rows]}, ensure_ascii=False)
        text = text.encode(errors="replace").decode()  # half a surrogate pair, cut off with its token

        def send() -> None:
            self._client.log_text(self.run_id, text, path)
            tables = json.loads(self._client.get_run(self.run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
            entry = {"path": path, "type": "table"}
            tables = [*[t for t in tables if t != entry][1 - _TABLES :], entry]
            self._client.set_tag(self.run_id, "mlflow.loggedArtifacts", json.dumps(tables))

        self._deliver(path, send, artifact=True)

    def _deliver(self, what: str, send: Callable[[], None], artifact: bool = False) -> None:
        self._outbox.deliver(what, send, "artifacts" if artifact else "database")


def _connect(uri: str) -> Any:
    """An MLflow client with MLflow's own chatter, telemetry and minutes-long HTTP retries turned off."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    import mlflow

    for name in ("mlflow", "alembic", "sqlalchemy"):  # also where quiet_driver took MLflow's handlers away
        logging.getLogger(name).setLevel(logging.CRITICAL)
    mlflow.set_tracking_uri(uri)  # Model.log and the registry know no other way to be told
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def _experiment(client: Any, name: str, location: str | None) -> str:
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except Exception:
        found = client.get_experiment_by_name(name)  # it exists, or another run created it at this moment
        if found is None:
            raise
    if found.lifecycle_stage == "deleted":
        raise TrackingError(f"tracking.experiment: {name!r} is deleted in MLflow; restore it or choose another name")
    return str(found.experiment_id)


def _find_run(client: Any, run_id: str, warn: Warn) -> Any:
    """The run to continue; None where the store lost it, which must not make a run impossible to resume."""
    try:
        run = client.get_run(run_id)
        if run.info.lifecycle_stage == "active":
            return run
    except Exception as error:
        if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
            raise
    warn(f"MLflow run {run_id} no longer exists: a new one is started")
    return None


def _register(client: Any, run_id: str, export_dir: Path, name: str, step: int) -> str:
    import mlflow.transformers
    import transformers.pipelines  # noqa: F401 - MLflow would import it, with all that is optional
    from mlflow.models import Model

    run = client.get_run(run_id)
    # Model.log alone would file the model under the process-wide experiment; start_run would end the run again.
    logged = client.create_logged_model(run.info.experiment_id, name=name, source_run_id=run_id, params=run.data.params)
    installed = facts.package_versions()
    try:
        info = Model.log(
            artifact_path=None,
            name=name,
            flavor=mlflow.transformers,
            run_id=run_id,
            model_id=logged.model_id,
            step=step,
            registered_model_name=name,
            transformers_model=str(export_dir),
            task=_task(export_dir),
            pip_requirements=[f"{p}=={installed[f'package.{p}'].partition('+')[0]}" for p in ("torch", "transformers")],
        )
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    version = str(info.registered_model_version)
    client.set_registered_model_alias(name, "candidate", version)
    return version


def _task(export_dir: Path) -> str:
    """What MLflow's transformers flavour calls the model: a reward model classifies, others chat or go on writing."""
    if 'ForSequenceClassification"' in (export_dir / "config.json").read_text():
        return "text-classification"
    chat = (export_dir / "chat_template.jinja").exists()
    if (tokenizer := export_dir / "tokenizer_config.json").exists():
        chat |= '"chat_template"' in tokenizer.read_text()
    return "llm/v1/chat" if chat else "text-generation"


def _may_pass(error: Exception) -> bool:
    """Whether another attempt can succeed: not for what MLflow refuses, nor for a bug on this side of it."""
    code = getattr(error, "error_code", None)
    return isinstance(error, OSError) if code is None else code not in _PERMANENT


def _public(text: str) -> str:
    return re.sub(r"(?<=://)[^/@\s]+@", "***@", text)  # a password inside a URI is for nobody's eyes


def _free_port(first: int) -> int:
    """The first port from ``first`` on that nobody listens on here: the shown command should work as shown."""
    for port in range(first, first + 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    return first


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {_public(str(error).strip().partition(chr(10))[0][:300])}"
