"""Disks, servers, clusters, GPUs and memory that do not fit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipelines.checks import Level, machine
from pipelines.doctor import cluster_shortfalls, diagnose, refuse_unfit
from tests.unit.doctor.fitting import GB, Configure, Usage, available, disk, failure, only

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
    monkeypatch.setattr(machine, "_gpus", lambda: 1)
    assert "GPU: 2 needed, 1 present" in failure(config, "resources")
    monkeypatch.setattr(machine, "_gpus", lambda: 2)
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
    return machine._gpus()


def test_gpus_come_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = "echo 'GPU 0: H (UUID: a)'; echo '  MIG 1g Device 0: (UUID: c)'; echo 'GPU 1: H (UUID: b)'"
    assert nvidia_smi(tmp_path, monkeypatch, two) == 2
    assert nvidia_smi(tmp_path, monkeypatch, "echo 'No devices were found'; exit 6") == 0
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert machine._gpus() == 0


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
        model={"dtype": dtype},
        resources=groups,
        evaluation={"judge": {"kind": "rule", "rule": "actors.judges.rules:vader_sentiment"}},
    )
    billions = 7
    assert machine._estimate(config, billions * 10**9) == pytest.approx(
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
    assert machine._estimate(config, 7 * 10**9) == pytest.approx({"judge": 0.3, "ray": 0.8})


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
    monkeypatch.setattr(machine, "_SHM", Path("/no/such/directory"))
    assert only(configure(), "shared memory").level is Level.WARN


def test_unreadable_weights_leave_memory_unjudged(configure: Configure, model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"?")
    assert "memory" not in {c.name for c in diagnose(configure())}
