"""The model registry: a version for every exported model, `candidate` the newest, `best` the one that won most."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from pipelines import facts
from pipelines.tracking.client import TrackingError, Warn
from pipelines.tracking.events import Exported

WIN_RATE, HELDOUT, STEP = "rondo.eval.win_rate", "rondo.eval.heldout", "rondo.step"


def register(client: Any, run_id: str, event: Exported, warn: Warn) -> str:
    """Register a Hugging Face directory; its files are copied, never loaded. Returns the registry's version.

    What has been registered of that run and step is not registered again.
    """
    version = _known(client, run_id, event)
    if version is None:
        with contextlib.redirect_stderr(io.StringIO()):  # MLflow prints there, whatever its logging level
            version = _register(client, run_id, event)
    for key, value in {**event.tags, STEP: str(event.step)}.items():
        client.set_model_version_tag(event.name, version, key, value[:5000])
    client.set_registered_model_alias(event.name, "candidate", version)
    _keep_best(client, event, version, warn)
    return version


def _known(client: Any, run_id: str, event: Exported) -> str | None:
    found = client.search_model_versions(f"run_id = '{run_id}' and name = '{event.name}'")
    return next((str(v.version) for v in found if v.tags.get(STEP, str(event.step)) == str(event.step)), None)


def _keep_best(client: Any, event: Exported, version: str, warn: Warn) -> None:
    """Win rates are compared only where judge and held-out prompts are the same; otherwise ``best`` stays."""
    if WIN_RATE not in event.tags:
        return
    registered = client.get_registered_model(event.name)
    holder = registered.aliases.get("best")
    if holder is not None and str(holder) != version:
        tags = client.get_model_version(event.name, str(holder)).tags
        if tags.get(HELDOUT) != event.tags.get(HELDOUT):
            warn(
                f"model {event.name}: version {holder} stays `best`; version {version} was evaluated by another judge "
                f"or on other prompts, so their win rates say nothing about each other"
            )
            return
        if float(tags.get(WIN_RATE, "-inf")) >= float(event.tags[WIN_RATE]):
            return
    client.set_registered_model_alias(event.name, "best", version)


def _register(client: Any, run_id: str, event: Exported) -> str:
    import mlflow.transformers
    import transformers.pipelines  # noqa: F401 - MLflow would import it, with all that is optional
    from mlflow.models import Model

    directory = Path(event.directory)
    if not (directory / "config.json").is_file():
        raise TrackingError(f"{directory} is no model directory any more")
    run = client.get_run(run_id)
    # Model.log alone would file the model under the process-wide experiment; start_run would end the run again.
    logged = client.create_logged_model(
        run.info.experiment_id, name=event.name, source_run_id=run_id, params=run.data.params
    )
    installed = facts.package_versions()
    try:
        info = Model.log(
            artifact_path=None,
            name=event.name,
            flavor=mlflow.transformers,
            run_id=run_id,
            model_id=logged.model_id,
            step=event.step,
            registered_model_name=event.name,
            transformers_model=str(directory),
            task=_task(directory),
            pip_requirements=[f"{p}=={installed[f'package.{p}'].partition('+')[0]}" for p in ("torch", "transformers")],
        )
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    return str(info.registered_model_version)


def _task(directory: Path) -> str:
    """What MLflow's transformers flavour calls the model: a reward model classifies, others chat or go on writing."""
    if 'ForSequenceClassification"' in (directory / "config.json").read_text():
        return "text-classification"
    chat = (directory / "chat_template.jinja").exists()
    if (tokenizer := directory / "tokenizer_config.json").exists():
        chat |= '"chat_template"' in tokenizer.read_text()
    return "llm/v1/chat" if chat else "text-generation"
