"""What is installed is what was locked: exact versions, from an index, the same ones that pyproject.toml asks for."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked(engine: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"{engine}.lock").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    for r in requirements:
        assert r.url is None, f"{r}: not from an index"
        assert [s.operator for s in r.specifier] == ["=="], f"{r}: not an exact version"
        assert not str(r.specifier).endswith("*")
    return {canonicalize_name(r.name): next(iter(r.specifier)).version for r in requirements}


@pytest.mark.parametrize("engine", ["cpu", "gpu"])
def test_the_lock_is_exact_and_has_what_the_project_asks_for(engine):
    lock = locked(engine)
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras[engine], *extras["postgres"], *extras["dev"]]:
        wanted = Requirement(text)
        if wanted.name == "torch":
            continue  # installed on its own, at the version below
        assert lock[canonicalize_name(wanted.name)] == next(iter(wanted.specifier)).version


def test_torch_is_pinned_once():
    [version] = re.findall(r"(?m)^torch_version=(\S+)$", (ROOT / "scripts" / "bootstrap.sh").read_text())
    for engine in ("cpu", "gpu"):
        assert f"torch=={version}" in PROJECT["optional-dependencies"][engine]
        assert "torch" not in locked(engine)


def test_every_dependency_of_the_project_is_exact():
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        for text in group:
            assert [s.operator for s in Requirement(text).specifier] == ["=="], text


def test_nothing_is_installed_that_was_not_locked():
    """pip would otherwise resolve what a lock left out."""
    script = (ROOT / "scripts" / "bootstrap.sh").read_text()
    assert re.findall(r"-m pip install (.*)", script) == [
        '--disable-pip-version-check --quiet --no-deps "$@" >"$log" 2>&1'
    ]


def test_the_audit_parses_and_fails_where_it_could_not_look():
    script = ROOT / "scripts" / "supply_chain.sh"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert "--strict" in script.read_text()  # else packages that were not found would pass
