"""A machine as the checks see one, and what they say about it."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from configs.runs import RunConfig
from pipelines.checks import Check, Level
from pipelines.doctor import UnfitError, diagnose, refuse_unfit

REPOSITORY = Path(__file__).parents[3]
GB = 10**9
Usage = namedtuple("Usage", "total used free")
Configure = Callable[..., RunConfig]


def available(monkeypatch: pytest.MonkeyPatch, gigabytes: float) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=gigabytes * GB))


def disk(monkeypatch: pytest.MonkeyPatch, gigabytes: float) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, int(gigabytes * GB)))


def installed(monkeypatch: pytest.MonkeyPatch, requires: list[str] | None, versions: dict[str, str]) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    def requirements(name: str) -> list[str]:
        assert name == "rondo"
        if requires is None:
            raise metadata.PackageNotFoundError(name)
        return requires

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", requirements)


def only(config: RunConfig, name: str) -> Check:
    (check,) = [c for c in diagnose(config) if c.name == name]
    return check


def failure(config: RunConfig, name: str) -> str:
    """Detail and fix of the only failed check, which must be ``name``, and which a run must be refused for."""
    (check,) = [c for c in diagnose(config) if c.level is Level.FAIL]
    assert check.name == name
    assert check.fix
    with pytest.raises(UnfitError) as refused:
        refuse_unfit(config)
    assert check.detail in str(refused.value)
    assert check.fix in str(refused.value)
    return f"{check.detail}; {check.fix}"
