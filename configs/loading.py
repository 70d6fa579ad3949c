"""YAML and ``section.key=value`` overrides -> a configuration; every error names the field, the value and the fix."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from configs.runs import OfflineConfig, RewardModelConfig, RunConfig, SftConfig, TrainingConfig
from configs.section import Section

C = TypeVar("C", bound=TrainingConfig)
S = TypeVar("S", bound=Section)


class ConfigError(Exception):
    """The configuration cannot be used; the message says which field, which value and what to do."""


def load_config(kind: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """Read ``path``, apply ``overrides`` (``objective.beta=0.2``; values are YAML) and validate.

    Input paths come back absolute. Raises ConfigError with one line a problem.
    """
    return configure(kind, read_yaml(path), overrides, Path(path).resolve().parent)


def configure(kind: type[S], raw: Mapping[str, Any], overrides: Sequence[str], base: Path) -> S:
    """The same from a mapping of sections; relative input paths are resolved against ``base``."""
    sections = copy.deepcopy(dict(raw))
    for override in overrides:
        _apply(sections, override)
    _resolve_paths(sections, base)
    return validate(kind, sections)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping of sections in a YAML file, not yet validated. Raises ConfigError."""
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"config file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file {path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"config file {path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"config file {path} must hold a mapping of sections, found {type(raw).__name__}")
    try:
        expanded = _values(raw, {})
    except RecursionError:
        raise ConfigError(
            f"config file {path}: an alias stands inside of what it names, or it is nested too deeply"
        ) from None
    if expanded > _MOST_VALUES:
        raise ConfigError(f"config file {path}: its aliases stand for {expanded:,} values, more than {_MOST_VALUES:,}")
    return raw


_MOST_VALUES = 10_000


def _values(value: object, known: dict[int, int]) -> int:
    """How many values there are once aliases are written out; raises RecursionError on one inside of itself."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_values(v, known) for v in inner)
    return known[id(value)]


def config_kind(path: str | Path) -> type[TrainingConfig]:
    """What a configuration file is for: data from files, or sampled online."""
    raw = read_yaml(path)
    if "data" not in raw:
        return RunConfig
    objective = raw.get("objective")
    name = objective.get("name") if isinstance(objective, dict) else None
    kinds: dict[str, type[TrainingConfig]] = {"sft": SftConfig, "bradley_terry": RewardModelConfig}
    return kinds.get(name, OfflineConfig) if isinstance(name, str) else OfflineConfig


def validate(kind: type[S], raw: Mapping[str, Any]) -> S:
    """Validate a nested mapping; raises ConfigError listing every problem at once."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(kind, e) for e in error.errors())) from None


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
    "recovery.",
    "weights.",
)

# The same of judges: who asks or answers, where, and how patiently.
_JUDGING_GOES_ON = (
    ".host", ".port", ".public_url", ".serve", ".store", ".annotators", ".reviewers", ".lease_s", ".quorum",
    ".deadline_s", ".warning", ".url", ".api_key_env", ".api_key_file", ".concurrency", ".requests_per_minute",
    ".timeout_s", ".retries", ".budget", ".kv_cache_gb", ".gpu_memory_utilization", ".batch_tokens",
)  # fmt: skip
_JUDGES_FILES = ("judge.template", "judge.guidelines", "judge.gold")


def defines_experiment(key: str) -> bool:
    """Whether the field (``objective.beta``) must be the same in every attempt at a run."""
    return not key.startswith(_ATTEMPT_FIELDS) and not ("judge." in key and key.endswith(_JUDGING_GOES_ON))


def scientific(config: Section) -> dict[str, str]:
    """The flattened fields that define the experiment: all but placement, tracking, deadlines and length.

    Input files stand with name and content: under ``ray job submit`` every attempt has a copy of its own elsewhere.
    """
    fields = {k: v for k, v in flatten(config).items() if defines_experiment(k)}
    for key in [k for k in fields if k.endswith((*INPUT_FILES, *_JUDGES_FILES)) and fields[k]]:
        path = Path(fields[key])
        # A run's directory may be data, too. os.path's: they know no path that is too long or otherwise impossible.
        file = path / "run.json" if os.path.isdir(path) else path
        content = hashlib.sha256(file.read_bytes()).hexdigest()[:12] if os.path.isfile(file) else "absent"
        fields[key] = f"{path.name} ({content})"
    return fields


def config_hash(config: TrainingConfig) -> str:
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
        _values(node[leaf], {})
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"override {override[:80]!r}: the value is not valid YAML: {error}") from None


# Relative inputs belong to the YAML's own folder, wherever the command is started.
INPUT_FILES = ("prompts.train", "prompts.heldout", "data.train", "data.heldout", "data.prompts")
_INPUT_PATHS = ("model.path", *INPUT_FILES, "sft.data.train", "sft.data.heldout")


_LOCAL = ("llm", "reward_model", "implicit")  # judges whose model is a directory


def _judges(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in ``node`` that configures a judge."""
    if isinstance(node, dict):
        if "kind" in node:
            yield node
        for value in node.values():
            yield from _judges(value)
    elif isinstance(node, list):
        for value in node:
            yield from _judges(value)


def _resolve_paths(raw: dict[str, Any], base: Path) -> None:
    def expand(text: str) -> str:
        return os.path.expandvars(os.path.expanduser(text))

    def absolute(key: str, text: str) -> str:
        try:
            return str((base / expand(text)).resolve())
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"{key}: {text[:80]!r} is no path: {error}") from None

    for path in _INPUT_PATHS:
        *sections, key = path.split(".")
        node: Any = raw
        for section in sections:
            node = node.get(section) if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(node.get(key), str) and node[key]:
            node[key] = absolute(path, node[key])
    evaluation = raw.get("evaluation")
    for judge in (raw.get("judge"), evaluation.get("judge") if isinstance(evaluation, dict) else None):
        for node in _judges(judge):
            local = ("model",) if node.get("kind") in _LOCAL else ()
            for key in ("template", "guidelines", "gold", "reference", "api_key_file", *local):
                if isinstance(node.get(key), str) and node[key] not in ("", "initial", "policy"):
                    node[key] = absolute(f"judge.{key}", node[key])
    opponents = raw.get("opponents")
    for node in opponents if isinstance(opponents, list) else []:
        if isinstance(node, dict) and isinstance(node.get("path"), str) and node["path"]:
            node["path"] = absolute("opponents.path", node["path"])
    run = raw.get("run")
    if isinstance(run, dict):
        root = run.get("root", "~/.rondo/runs")
        if isinstance(root, str):
            run["root"] = expand(root)
            if "\0" in run["root"]:
                raise ConfigError(f"run.root: {root[:80]!r} is no path: it holds a NUL character")
            if not os.path.isabs(run["root"]):
                raise ConfigError(
                    f"run.root: {root!r} is relative; under `ray job submit` it would vanish with Ray's copy of the "
                    f"working directory. Give an absolute path that every node sees, e.g. run.root=/shared/rondo"
                )


def _describe(kind: type[BaseModel], error: Any) -> str:
    keys, _ = _walk(kind, error["loc"])
    location = ".".join(keys)
    if error["type"] == "extra_forbidden":
        known = [key for section in _options(kind, error["loc"][:-1]) for key in section.model_fields]
        return f"{location}: unknown key; {_nearest(keys[-1], known)}"
    if error["type"] == "missing":
        return f"{location}: required, but not given"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return _wrong_tag(location, error["ctx"], _options(kind, error["loc"]))
    message = error["msg"].removeprefix("Value error, ")
    return f"{location}: {message}; got {_shown(error['input'])}" if location else message


def _wrong_tag(location: str, context: Mapping[str, str], options: Sequence[type[BaseModel]]) -> str:
    """Which member of a union is meant is said by one of its keys (``objective.name``, ``judge.kind``)."""
    key = context["discriminator"].strip("'")
    known = [tag for option in options if (tag := _tags(option).get(key)) is not None]
    if "tag" not in context:
        return f"{location}.{key}: required, but not given; known here: {', '.join(known)}"
    return f"{location}.{key}: unknown {key} {context['tag']!r}; {_nearest(context['tag'], known)}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known)}"


def _walk(kind: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], list[type[BaseModel]]]:
    """The keys a person wrote, without the union branches that pydantic adds, and the sections they may lead to."""
    keys: list[str] = []
    options: list[type[BaseModel]] = [kind]
    for part in location:
        chosen = [o for o in options if part in _tags(o).values()]
        if len(options) > 1 and chosen:
            options = chosen
            continue
        keys.append(str(part))
        field = next((o.model_fields[str(part)] for o in options if str(part) in o.model_fields), None)
        if field is not None:
            options = _sections(field.annotation)
        elif not isinstance(part, int):
            options = []
    return keys, options


def _options(kind: type[BaseModel], location: Sequence[str | int]) -> list[type[BaseModel]]:
    return _walk(kind, location)[1]


def _tags(model: type[BaseModel]) -> dict[str, str]:
    """Keys of a section that can have one word as their value: what tells it from the others of a union."""
    words = ((key, get_args(field.annotation)) for key, field in model.model_fields.items())
    return {key: found[0] for key, found in words if len(found) == 1 and isinstance(found[0], str)}


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """Every section inside a field's type: of unions and tuples, too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections(inner)]
