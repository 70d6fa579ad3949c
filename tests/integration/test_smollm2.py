"""The quickstart's real model through the whole real chain, one step of it."""

import asyncio
import io
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from configs.loading import load_config
from configs.runs import RunConfig
from tests.integration.conftest import ROOT, journal, losses

SMALL = [
    "run.name=smollm2", "run.steps=1", "sampling.prompts_per_step=4", "sampling.candidates=3", "sampling.max_tokens=24",
    "evaluation.prompts=4", "evaluation.probe=0", "optimizer.warmup_steps=0",
]  # fmt: skip


@pytest.mark.smollm2
def test_first_loss_in_bf16_and_a_policy_that_moves(ray_here, tmp_path):
    from pipelines.online import run_online
    from pipelines.progress import Progress

    config = load_config(RunConfig, ROOT / "configs" / "quickstart.yaml", [*SMALL, f"run.root={tmp_path}"])
    with Progress(Console(file=io.StringIO())) as progress:
        evaluation = asyncio.run(run_online(config, "never", progress))
    run_dir = Path(config.run.root) / "smollm2"
    assert losses(run_dir)[1] == pytest.approx(math.log(2), abs=1e-3)
    # Real text of a real model: words, of which VADER knows some.
    texts = [c["text"] for c in journal(run_dir, "candidates") if c["step"] == 1]
    assert len(texts) == 12
    assert sum(len(t.split()) >= 5 for t in texts) >= 10
    assert evaluation.length_after > 0
    before = load_file(Path(config.model.path) / "model.safetensors")
    after = load_file(run_dir / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) > len(before) / 2
