"""Where results go and where the run takes place. Nothing is created, and servers are only asked if they listen."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from actors import placement
from configs.runs import RunConfig, TrainingConfig
from pipelines.checks import Check, Level, forecast

_GB = 1e9
_GIB = 2.0**30
_SHM = Path("/dev/shm")
_TIMEOUT_S = 3.0

# Resident memory of a process beyond weights and caches, in GB: interpreter, libraries, activations.
_SAMPLER_GB, _REFERENCE_GB, _TRAINER_GB, _JUDGE_GB, _RAY_GB = 1.2, 0.8, 1.5, 0.3, 0.8
_SAMPLER_COPIES = 1.5  # weights, and half of them again while new ones are loaded
_TRAINER_BYTES = 12 + 4  # fp32 master weights and Adam's two moments, and gradients; per parameter
_TIGHT = 0.85  # share of the available memory from which a run is likely to swap
_STORE_GB = 0.512  # Ray's object store lives in shared memory, too


# --- where results go


def _existing(path: Path) -> Path:
    """``path``, or the nearest of its parents that exists."""
    return next(p for p in (path, *path.parents) if p.exists())


def _writable(directory: Path) -> bool:
    """Whether files can be made in ``directory``, or it can be created."""
    base = _existing(directory)
    return base.is_dir() and os.access(base, os.W_OK | os.X_OK)


def root(config: TrainingConfig) -> Check:
    directory = Path(config.run.root)
    if _writable(directory):
        return Check("run root", Level.OK, str(directory))
    fix = "set run.root to a directory that you may write to"
    return Check("run root", Level.FAIL, f"{directory}: {_existing(directory)} is not a writable directory", fix)


def disk(config: TrainingConfig) -> Check:
    base = _existing(Path(config.run.root))
    free, need = shutil.disk_usage(base).free / _GB, config.run.min_free_disk_gb
    detail = f"{free:.1f} GB free under {base}, {need:.1f} GB wanted"
    if free >= need:
        return Check("disk", Level.OK, detail)
    fix = "free space, set run.root to a larger disk, or lower run.min_free_disk_gb"
    return Check("disk", Level.FAIL, detail, fix)


def disk_forecast(config: TrainingConfig, shapes: forecast.Shapes, *, cluster: bool) -> Check:
    transport = config.weights.transport
    shared = transport == "shm" or (transport == "auto" and not cluster)
    base = _existing(Path(config.run.root))
    return forecast.forecast(config, shapes, shared=shared, base=base)


def tracking(config: TrainingConfig) -> Check:
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


def cluster(address: str) -> Check:
    if address in ("auto", "local"):
        return Check("ray", Level.OK, f"RAY_ADDRESS={address}: found out when joining")
    fix = "start the cluster, correct RAY_ADDRESS (host:port or ray://host:port), or unset it to run on this machine"
    if address.startswith(("http://", "https://")):
        return Check("ray", Level.FAIL, "RAY_ADDRESS is a dashboard's address, for `ray job` only", fix)
    return _server("ray", address if "://" in address else f"//{address}", fix)


def resources(config: TrainingConfig, *, training: bool) -> Check:
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


def _item_bytes(config: TrainingConfig) -> int:
    return 2 if config.model.dtype == "bfloat16" else 4


def _estimate(config: TrainingConfig, parameters: int) -> dict[str, float]:
    """GB of host memory by stage; a stage on GPUs holds its weights there and counts nothing."""
    weights = parameters * _item_bytes(config) / _GB
    cache = config.sampling.kv_cache_gb * _GIB / _GB if isinstance(config, RunConfig) else 0.0
    shard = parameters * (_item_bytes(config) + _TRAINER_BYTES) / config.resources.trainer.actors / _GB
    engine = weights * _SAMPLER_COPIES + cache + _SAMPLER_GB
    an_actor = {
        "sampler": engine,
        "opponents": engine,
        "reference": weights + _REFERENCE_GB,
        "trainer": shard + _TRAINER_GB,
        "judge": _JUDGE_GB,
    }
    stages = {
        stage: sum(group.actors * an_actor[stage] for group in groups)
        for stage, groups in config.groups.items()
        if not groups[0].gpus
    }
    return {**stages, "ray": _RAY_GB}


def memory(config: TrainingConfig, parameters: int, *, training: bool) -> Check:
    shares = _estimate(config, parameters)
    if not training:
        shares = {stage: share for stage, share in shares.items() if stage not in ("trainer", "opponents")}
    need, available = sum(shares.values()), psutil.virtual_memory().available / _GB
    breakdown = ", ".join(f"{stage} {share:.1f}" for stage, share in shares.items())
    detail = f"about {need:.1f} GB needed ({breakdown}), {available:.1f} GB available"
    if need <= _TIGHT * available:
        return Check("memory", Level.OK, detail)
    fix = "lower sampling.kv_cache_gb or the actors of resources.<stage>, take a smaller model, or free memory"
    return Check("memory", Level.FAIL if need > available else Level.WARN, detail, fix)


def shared_memory(config: TrainingConfig, parameters: int) -> Check:
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
