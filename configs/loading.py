"""YAML and ``section.key=value`` overrides -> ``RunConfig``; every error names the field, the value and the fix."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from configs.schema import RunConfig


class ConfigError(Exception):
    """The configuration cannot be used; the message says which field, which value and what to do."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read ``path``, apply ``overrides`` (``objective.beta=0.2``; values are YAML) and validate.

    Input paths come back absolute. Raises ConfigError with one line a problem.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"config file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file {path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"config file {path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"config file {path} must hold a mapping of sections, found {type(raw).__name__}")
    for override in overrides:
        _apply(raw, override)
    _resolve_paths(raw, path.resolve().parent)
    return validate(raw)


def validate(raw: Mapping[str, Any]) -> RunConfig:
    """Validate a nested mapping; raises ConfigError listing every problem at once."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(e) for e in error.errors())) from None


def flatten(config: BaseModel) -> dict[str, str]:
    """``{"objective.beta": "0.1", ...}``: what MLflow logs and ``differing_fields`` compares."""

    def walk(value: object, prefix: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from walk(inner, f"{prefix}.{key}" if prefix else str(key))
        else:
            yield prefix, json.dumps(value) if isinstance(value, (list, dict)) else str(value)

    return dict(walk(config.model_dump(mode="json"), ""))


# What may change between attempts of one run: where and with how much it runs, not what it computes.
_ATTEMPT_FIELDS = (
    "run.root",
    "run.steps",
    "run.min_free_disk_gb",
    "resources.",
    "tracking.",
    "checkpoint.",
    "deadlines.",
    "weights.",
)


def scientific(config: RunConfig) -> dict[str, str]:
    """The flattened fields that define the experiment: all but placement, tracking, deadlines and length.

    Prompt files stand with name and content: under ``ray job submit`` every attempt has a copy of its own elsewhere.
    """
    fields = {k: v for k, v in flatten(config).items() if not k.startswith(_ATTEMPT_FIELDS)}
    for key in ("prompts.train", "prompts.heldout"):
        path = Path(fields[key])
        content = hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else "absent"
        fields[key] = f"{path.name} ({content})"
    return fields


def config_hash(config: RunConfig) -> str:
    """Hash of the scientific fields; equal hashes may resume each other."""
    return hashlib.sha256(json.dumps(scientific(config), sort_keys=True).encode()).hexdigest()[:12]


def differing_fields(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """``["objective.beta: 0.1 -> 0.2"]`` for every field whose value differs."""
    keys = sorted(set(old) | set(new))
    return [f"{k}: {old.get(k, '(absent)')} -> {new.get(k, '(absent)')}" for k in keys if old.get(k) != new.get(k)]


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    *sections, leaf = key.strip().split(".")
    node: Any = raw
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, not a section")
    try:
        node[leaf] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from None


# Inputs that are files: relative ones belong to the YAML's own folder, wherever the command is started.
_INPUT_PATHS = (("model", "path"), ("prompts", "train"), ("prompts", "heldout"))


def _resolve_paths(raw: dict[str, Any], base: Path) -> None:
    def expand(text: str) -> str:
        return os.path.expandvars(os.path.expanduser(text))

    for section, key in _INPUT_PATHS:
        node = raw.get(section)
        if isinstance(node, dict) and isinstance(node.get(key), str):
            node[key] = str((base / expand(node[key])).resolve())
    run = raw.get("run")
    if isinstance(run, dict):
        root = run.get("root", "~/.rondo/runs")
        if isinstance(root, str):
            run["root"] = expand(root)
            if not os.path.isabs(run["root"]):
                raise ConfigError(
                    f"run.root: {root!r} is relative; under `ray job submit` it would vanish with Ray's copy of the "
                    f"working directory. Give an absolute path that every node sees, e.g. run.root=/shared/rondo"
                )


def _describe(error: Any) -> str:
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known)}"
        return f"{location}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{location}: required, but not given"
    message = error["msg"].removeprefix("Value error, ")
    return f"{location}: {message}; got {error['input']!r}" if location else message


def _known_keys(location: Sequence[str | int]) -> list[str]:
    model: Any = RunConfig
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            continue  # a union's branch name inside the location
        options = [
            t
            for t in (field.annotation, *get_args(field.annotation))
            if isinstance(t, type) and issubclass(t, BaseModel)
        ]
        if not options:
            return []
        model = options[0]
    return list(model.model_fields)
