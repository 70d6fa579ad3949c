"""``run.json`` and ``config.yaml``: what a run is and how it is configured, for a later attempt to go on with it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from actors.files import replace_file
from configs.runs import TrainingConfig
from pipelines.ledger.journal import LedgerError, saving
from pipelines.ledger.migrate import SCHEMA, known_schema

RECORD = "run.json"
CONFIGURATION = "config.yaml"


@dataclass(frozen=True, slots=True)
class RunRecord:
    config_hash: str
    fields: dict[str, str]
    mlflow_run: str
    attempts: int
    logged_step: int  # last step that reached MLflow
    incarnations: int = 0  # lives of the weights so far
    finished: int = 0  # steps after which the run came to its end and was exported; 0: it has not
    schema: int = SCHEMA


_record: TypeAdapter[RunRecord] = TypeAdapter(RunRecord)


def read_record(run_dir: Path) -> RunRecord | None:
    """``run.json`` as today's Rondo would have written it; None where there is none. Raises LedgerError."""
    path = run_dir / RECORD
    data = _read(path)
    return None if data is None else parse_record(data, str(path))


def parse_record(data: bytes, place: str) -> RunRecord:
    """The same from the file's content, which lies at ``place``."""
    raw = _parse(data, place)
    if unknown := raw.keys() - RunRecord.__dataclass_fields__.keys():
        raise LedgerError(f"{place} is damaged: unknown fields {', '.join(sorted(unknown))}")
    try:
        return _record.validate_python({**raw, "schema": SCHEMA})
    except ValidationError as error:
        first = error.errors()[0]
        raise LedgerError(f"{place} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def schema_of(run_dir: Path) -> int:
    """The schema that the journals of a run are written in; today's where there is no run yet. Raises LedgerError."""
    path = run_dir / RECORD
    data = _read(path)
    return SCHEMA if data is None else int(_parse(data, str(path))["schema"])


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror or error}") from None


def _parse(data: bytes, place: str) -> dict[str, Any]:
    try:
        raw: dict[str, Any] = json.loads(data)
        known_schema(raw)
    except (ValueError, RecursionError) as error:
        raise LedgerError(f"{place} is damaged or of another version: {error}") from None
    return raw


def write_record(run_dir: Path, record: RunRecord) -> None:
    """Replace ``run.json`` durably. Raises LedgerError where the disk refuses; the old one is then still there."""
    with saving(RECORD, run_dir):
        replace_file(run_dir / RECORD, json.dumps(asdict(record), indent=1).encode())


def write_configuration(run_dir: Path, config: TrainingConfig) -> None:
    """Write the whole configuration, defaults and paths resolved, as a file that ``load_config`` reads."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    with saving(CONFIGURATION, run_dir):
        replace_file(run_dir / CONFIGURATION, text.encode())
