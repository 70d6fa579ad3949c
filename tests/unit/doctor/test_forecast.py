"""The disk that a run will take: worked numbers, and what is said where there is too little."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.loading import validate
from configs.runs import OfflineConfig
from configs.schema import LoRA
from pipelines.checks import Level
from pipelines.checks.forecast import adapter_parameters, needed
from pipelines.doctor import diagnose
from tests.unit.doctor.fitting import Configure, disk, failure, only

SEVEN = [("model.layers.0.mlp.up_proj.weight", (70_000, 100_000))]  # seven billion parameters


def gigabytes(configure: Configure, shared: bool = True, **sections: dict) -> dict[str, float]:
    return dict(needed(configure(**sections), SEVEN, shared=shared))


def test_what_follows_from_the_model(configure: Configure) -> None:
    found = gigabytes(configure)
    assert found.pop("journals") == pytest.approx(0.008, abs=0.003)
    # fp32 master weights and Adam's moments, twice: an old checkpoint goes after the new one is complete
    assert found == {"checkpoints": 2 * 7 * 12, "export": 2 * 7 * 2}
    assert gigabytes(configure, model={"dtype": "float32"})["export"] == 2 * 7 * 4
    assert gigabytes(configure, checkpoint={"keep": 3, "keep_best": 2})["checkpoints"] == 6 * 7 * 12
    assert gigabytes(configure, shared=False)["weights"] == 2 * 7 * 2
    moved = gigabytes(configure, reference={"refresh": "periodic"})
    assert (moved["checkpoints"], moved["reference"]) == (2 * 7 * 16, 2 * 7 * 4)


def test_players_are_earlier_versions(configure: Configure) -> None:
    opponents = [{"player": "league", "size": 3}, {"player": "previous", "lag": 2}, {"player": "reference"}]
    config = configure(run={"max_staleness": 1}).model_dump() | {"opponents": opponents}
    found = needed(validate(type(configure()), config), SEVEN, shared=True)
    assert found["players"] == (3 + (2 + 1) + 1 + 1) * 7 * 2


def test_adapters_are_small(configure: Configure) -> None:
    shapes = [("model.embed_tokens.weight", (1000, 64)), ("model.layers.0.self_attn.q_proj.weight", (64, 64)),
              ("model.layers.0.mlp.up_proj.weight", (128, 64)), ("model.norm.weight", (64,)),
              ("lm_head.weight", (1000, 64))]  # fmt: skip
    assert adapter_parameters(shapes, LoRA(rank=4)) == 4 * (64 + 64) + 4 * (128 + 64)
    assert adapter_parameters(shapes, LoRA(rank=4, target=("q_proj",))) == 4 * (64 + 64)
    found = gigabytes(configure, model={"lora": {"rank": 8}})
    adapters = 8 * (70_000 + 100_000) / 1e9
    assert found["checkpoints"] == pytest.approx(2 * (12 * adapters + 7 * 2))


def test_journals_grow_with_what_is_sampled(configure: Configure) -> None:
    sampling = {"prompts_per_step": 16, "candidates": 4, "max_tokens": 48}
    short = gigabytes(configure, run={"steps": 16}, sampling=sampling)["journals"]
    long = gigabytes(configure, run={"steps": 1600}, sampling=sampling)["journals"]
    assert 0.006 < short < 0.015
    assert 60 * (short - 0.005) < long < 110 * short
    llm = {"kind": "llm", "model": "initial", "rule": None}
    judged = configure().model_dump() | {"judge": {k: v for k, v in llm.items() if v}}
    assert needed(validate(type(configure()), judged), SEVEN, shared=True)["journals"] > short * 0.9


def test_the_bound_holds_for_a_real_journal(configure: Configure, tmp_path: Path) -> None:
    """Of the loop with fakes: bytes that its journals really took, against the forecast of their share."""
    from tests.unit.audited import SIZE, STEPS, audited_run

    run = audited_run(tmp_path / "root" / "run")
    took = sum(p.stat().st_size for p in (run / "ledger").iterdir())
    bound = gigabytes(configure, run={"steps": STEPS}, sampling={**SIZE, "max_tokens": 4}, evaluation={"prompts": 3})
    assert took < (bound["journals"] * 1e9 - 5e6) < 12 * took


def test_too_little_is_refused_and_what_is_a_bound_only_warned_about(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"run": {"min_free_disk_gb": 0}}
    assert only(configure(**small), "disk forecast").level is Level.OK
    disk(monkeypatch, 0.0279)  # a million parameters: 24 MB of checkpoints, 4 MB of export, and journals
    detail = failure(configure(**small), "disk forecast")
    assert "checkpoints 0.0, export 0.0, journals" in detail
    assert "checkpoint.keep" in detail
    disk(monkeypatch, 0.0281)
    check = only(configure(**small), "disk forecast")
    assert check.level is Level.WARN
    assert "0.0 GB free" in check.detail


def test_what_the_run_has_already_counts(configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "runs" / "t" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "t" / "checkpoints" / "state").write_bytes(b"x" * 60_000_000)
    disk(monkeypatch, 0.001)
    check = only(configure(run={"min_free_disk_gb": 0}), "disk forecast")
    assert check.level is Level.OK
    assert "with the 0.1 GB that the run has" in check.detail


def test_it_stands_for_files_and_clusters_too(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = configure().model_dump()
    offline = {
        "run": {k: raw["run"][k] for k in ("name", "root")},
        "model": raw["model"],
        "data": {"train": "/x.jsonl"},
    }
    assert "disk forecast" in {c.name for c in diagnose(validate(OfflineConfig, offline))}
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert "weights" in only(configure(), "disk forecast").detail
