"""A run's configuration, out of the fields that its ``run.json`` records."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import configs
from configs.judges import is_independent
from configs.judging import JudgeSection
from configs.loading import ConfigError, configure, load_config, validate
from configs.runs import RunConfig
from pipelines.ledger.record import RECORD, RunRecord, read_record
from pipelines.play.contestants import initial_model

_FILE = re.compile(r"(?P<name>.+) \((?P<hash>[0-9a-f]{12}|absent)\)")
"""Input files stand with name and content hash, not with a path: every attempt may have a copy elsewhere."""
_WORDS: dict[str, Any] = {"True": True, "False": False}


def recorded_sections(record: RunRecord, names: Sequence[str], overrides: Sequence[str], places: Sequence[Path]) -> Any:
    """The sections of a configuration that the run recorded, as they were given.

    Input files are looked for by name and content in ``places`` and among the prompts that ship. Those that the
    ``overrides`` replace are left out. Raises ConfigError naming a file that is not to be found.
    """
    replaced = tuple(override.partition("=")[0].strip() for override in overrides)
    found: dict[str, Any] = {}
    for key, text in record.fields.items():
        section = key.partition(".")[0]
        if section not in names or text == "None" or any(key == r or key.startswith(f"{r}.") for r in replaced):
            continue
        node = found
        *sections, leaf = key.split(".")
        for name in sections:
            node = node.setdefault(name, {})
        file = _FILE.fullmatch(text)
        node[leaf] = str(_file(key, file["name"], file["hash"], places)) if file else _value(text)
    return found


def _value(text: str) -> Any:
    if text.startswith(("[", "{")):
        return json.loads(text)
    return _WORDS.get(text, text)  # numbers are read by the section's own types


def _file(key: str, name: str, content: str, places: Sequence[Path]) -> Path:
    for path in _candidates(name, places):
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest()[: len(content)] == content:
            return path.resolve()
    raise ConfigError(
        f"{key}: the run used {name} (content {content}), which is neither in {', '.join(map(str, places))} nor "
        f"among the prompts that ship: give it, {key}=PATH"
    )


def _candidates(name: str, places: Sequence[Path]) -> Iterator[Path]:
    for place in (*places, Path(configs.__file__).parent / "prompts", Path(configs.__file__).parent):
        yield place / name


SECTIONS = ("run", "model", "prompts", "sampling", "judge", "evaluation", "batching")
"""What playing a run's versions needs of its configuration."""


def arena_config(targets: Sequence[Path], config: str | None, overrides: Sequence[str], here: Path) -> RunConfig:
    """The configuration to play ``targets`` under: the file ``config``, or what the first run among them recorded.

    Without either it is the quickstart's. Judged by whoever judges the run's held-out answers. Raises ConfigError.
    """
    run_dir = next((t for t in targets if (t / RECORD).is_file()), None)
    if config is not None or run_dir is None:
        return load_config(RunConfig, config or "configs/quickstart.yaml", overrides)
    record = read_record(run_dir)
    assert record is not None  # it has a run.json
    raw = recorded_sections(record, SECTIONS, overrides, (here, run_dir))
    raw["run"] = {**raw.get("run", {}), "root": str(run_dir.resolve().parent)}
    raw["model"] = {**raw.get("model", {}), "path": str(initial_model(run_dir, record))}
    second = raw.get("evaluation", {}).pop("judge", None)
    if (
        second is not None
        and "judge" in raw
        and not is_independent(validate(JudgeSection, {"judge": raw["judge"]}).judge)
    ):
        raw["judge"] = second
    return configure(RunConfig, raw, overrides, here)
