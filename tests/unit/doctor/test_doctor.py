"""Problems are found before a run starts, all at once, quickly, and with a fix for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipelines import doctor
from pipelines.checks import Level
from pipelines.doctor import UnfitError, diagnose, refuse_unfit
from tests.unit.doctor.fitting import REPOSITORY, Configure, available, disk


def test_all_is_well(configure: Configure) -> None:
    config = configure()
    assert [(c.name, c.detail) for c in diagnose(config) if c.level is not Level.OK or c.fix] == []
    refuse_unfit(config)


def test_nothing_is_created(configure: Configure, tmp_path: Path) -> None:
    diagnose(configure())
    assert not (tmp_path / "runs").exists()


def test_the_command_prints_every_check_and_exits_0_or_1(configure: Configure, model: Path) -> None:
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    assert doctor.doctor(configure(), console) == 0
    text = console.export_text()
    assert "1 M parameters" in text
    assert "shared memory" in text
    assert "fail" not in text
    (model / "model.safetensors").unlink()
    assert doctor.doctor(configure(), console) == 1
    text = console.export_text()
    assert "no *.safetensors file" in text
    assert "fail" in text
    assert "1 M parameters" not in text


def test_brackets_in_a_path_are_no_markup(configure: Configure) -> None:
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    assert doctor.doctor(configure(model={"path": "/no/[bold]/model"}), console) == 1
    assert "/no/[bold]/model" in console.export_text()


def test_it_is_quick_and_imports_nothing_large(configure: Configure) -> None:
    heavy = ("vllm", "transformers", "mlflow", "ray", "deepspeed")  # torch: the configuration knows the objectives
    code = (
        "import sys, time; from configs.runs import RunConfig; from pipelines import doctor\n"
        "config = RunConfig.model_validate_json(sys.argv[1]); start = time.perf_counter(); doctor.diagnose(config)\n"
        f"print(time.perf_counter() - start, [m for m in {heavy} if m in sys.modules])"
    )
    arguments = [sys.executable, "-c", code, json.dumps(configure().model_dump(mode="json"))]
    out = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    seconds, modules = out.split(maxsplit=1)
    assert float(seconds) < 1.5
    assert modules.strip() == "[]"


def test_every_problem_is_listed_at_once(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch, 1)
    disk(monkeypatch, 1)
    with pytest.raises(UnfitError) as refused:
        refuse_unfit(configure(judge={"kind": "rule", "rule": "no_such_package.rules:score"}))
    lines = str(refused.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["judge", "disk", "memory"]
