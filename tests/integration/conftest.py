"""One Ray cluster of one, one tiny model and one finished run for all integration tests."""

from __future__ import annotations

import asyncio
import io
import json
import os
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from configs.loading import load_config
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "integration" / "tiny.yaml"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def ray_here():
    """A local cluster in this process; everything it started is gone afterwards."""
    import ray

    os.environ.pop("RAY_ADDRESS", None)
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=200 * 2**20
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def overrides(tiny, tmp_path_factory):
    """Overrides of tests/integration/tiny.yaml that fit this session; call with a run name."""
    root = tmp_path_factory.mktemp("runs")
    return lambda name, *more: [f"run.name={name}", f"run.root={root}", f"model.path={tiny}", *more]


@pytest.fixture(scope="session")
def finished(ray_here, overrides):
    """(config, run directory, reports, evaluation, terminal output) of one whole run on the tiny model."""
    from pipelines.progress import Progress
    from pipelines.session import run_online

    config = load_config(TINY, overrides("whole"))
    text = io.StringIO()
    with Progress(Console(file=text, width=200)) as progress:
        evaluation = asyncio.run(run_online(config, "never", progress))
    run_dir = Path(config.run.root) / "whole"
    return config, run_dir, evaluation, text.getvalue()


def journal(run_dir: Path, name: str) -> list[dict]:
    lines = (run_dir / "ledger" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line.partition(" ")[2]) for line in lines]


def losses(run_dir: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in journal(run_dir, "steps") if r["event"] == "trained"}


def pairs(run_dir: Path) -> dict[int, list[str]]:
    return {r["step"]: r["pairs"] for r in journal(run_dir, "steps") if r["event"] == "prepared"}


def write_yaml(path: Path, content: dict) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path
