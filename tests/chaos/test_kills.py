"""``kill -9`` of any process at any stage: the run goes on, and ends where one that was never touched does."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipelines.ledger.verify import verify
from tests.chaos.kills import ROLES, STAGES, Run
from tests.integration.conftest import journal, losses, mlflow, pairs, shared_memory_of

STEPS = 6
SEED = int(os.environ.get("RONDO_CHAOS_SEED", "0"))
KILLS = int(os.environ.get("RONDO_CHAOS_KILLS", "8"))
FIELDS = (
    f"run.steps={STEPS}",
    "recovery.retries=1000",
    "checkpoint.every=2",
    "resources.sampler.actors=2",
    "resources.sampler.cpus=0.1",
)


@pytest.fixture(scope="module")
def untouched(overrides):
    run = started("untouched", overrides)
    try:
        run.finish(timeout=240)
    finally:
        run.stop()
    return run


def started(name, overrides) -> Run:
    fields = overrides(name, *FIELDS)
    root = next(f.partition("=")[2] for f in fields if f.startswith("run.root="))
    run = Run(Path(root) / name, fields)
    run.start()
    return run


def same_end(run: Run, untouched: Run) -> None:
    """The same pairs, losses and weights; every step once in MLflow; nothing left behind."""
    assert pairs(run.directory) == pairs(untouched.directory)
    assert losses(run.directory) == pytest.approx(losses(untouched.directory), abs=1e-6)
    mine, theirs = (load_file(r.directory / "model" / "model.safetensors") for r in (run, untouched))
    for name in theirs:
        assert (mine[name] - theirs[name]).abs().max() < 1e-5
    client, record = mlflow(run.directory)
    assert record.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(record.info.run_id, "loss")] == list(range(1, STEPS + 1))
    assert shared_memory_of(run.directory) == []
    assert verify(run.directory, print) == 0
    bought = [i for r in journal(run.directory, "judgements") for i in r["judgements"]]
    assert len(bought) == STEPS * 4 * 3  # one rating a candidate, none twice


def test_kills_of_everything(untouched, overrides):
    """A kill of every kind of process at stages drawn from a seed; the driver's among them."""
    rng = random.Random(SEED)
    run = started("killed", overrides)
    plan = [(role, rng.choice(STAGES)) for role in ROLES] * (1 + KILLS // len(ROLES))
    rng.shuffle(plan)
    print(f"RONDO_CHAOS_SEED={SEED}")
    try:
        for role, stage in plan[:KILLS]:
            if role == "driver":
                if not run.kill_driver(stage):
                    break
                run.start()
            elif not run.kill(role, stage):
                break
        run.finish(timeout=400)
        same_end(run, untouched)
        assert run.left() == []
    finally:
        run.stop()
    assert run.hits, "nothing was killed"
