"""The reference pool on real Ray: every cell scored once, also when an actor is killed on the way."""

import asyncio
import os
import signal

import numpy as np
import pytest

from actors.faults import Faults
from actors.reference import ReferenceActor, ReferencePool
from actors.weights import WeightWriter
from configs.loading import load_config
from configs.runs import RunConfig
from pipelines.ledger.ledger import Ledger
from pipelines.scoring import Scorer
from pipelines.timing import Stopwatch
from preference.types import Version
from tests.factories import scored_pair
from tests.integration.conftest import TINY


class Watching:
    def stage(self, *args):
        pass


class Counting:
    """The pool, counting the forwards that came to an end."""

    def __init__(self, pool):
        self.pool, self.forwards, self.version = pool, 0, pool.version

    async def score(self, packed):
        result = await self.pool.score(packed)
        self.forwards += 1
        return result


@pytest.fixture
def pool(ray_here, overrides, tmp_path):
    config = load_config(RunConfig, TINY, overrides("reference", "batching.micro_batch_tokens=128"))
    pool = ReferencePool(config, tmp_path, tmp_path, Faults(config.recovery))
    try:
        asyncio.run(pool.ready())
        yield config, pool
    finally:
        pool.close()


def test_nothing_is_scored_twice_though_an_actor_is_killed(pool, tmp_path):
    config, real = pool
    items = [scored_pair(i, 60, 20, 20).item for i in range(6)]  # a cell each

    async def scores(reference, ledger, kill):
        scorer = Scorer(config, reference, 1, ledger, Watching())
        work = asyncio.ensure_future(scorer.score(1, items, Stopwatch()))
        if kill:
            while not reference.forwards and not work.done():
                await asyncio.sleep(0.01)
            os.kill(await (await real._crew.up(0)).pid.remote(), signal.SIGKILL)
        return (await work)[0]

    ledger = Ledger(tmp_path / "run")
    first = Counting(real)
    found = asyncio.run(scores(first, ledger, kill=True))
    ledger.close()
    assert first.forwards == len(items)
    ledger = Ledger(tmp_path / "run")  # a later attempt
    second = Counting(real)
    again = asyncio.run(scores(second, ledger, kill=False))
    ledger.close()
    assert second.forwards == 0
    for a, b in zip(found, again, strict=True):
        assert all((x == y).all() for x, y in zip(a.reference, b.reference, strict=True))


def test_a_moving_reference_is_what_the_formula_says(tiny, tmp_path, monkeypatch):
    """In this process: theta_ref <- alpha theta + (1 - alpha) theta_ref, and what is saved comes back."""
    from configs.schema import Batching, Model

    monkeypatch.setattr("actors.reference.redirect_output", lambda path: None)
    actor = ReferenceActor(Model(path=str(tiny), dtype="bfloat16"), Batching(), 1, False, str(tmp_path / "log"))
    before = {n: p.detach().float().clone() for n, p in actor._model.lm.named_parameters()}
    writer = WeightWriter(tmp_path / "new", Version(0, 1))
    writer.add({n: p + 1 for n, p in before.items()})
    writer.finish()
    for _ in range(2):
        actor.refresh(str(tmp_path / "new"), 0.25)
    for name, exact in actor._exact.items():
        assert np.allclose(exact.numpy(), before[name].numpy() + (1 - 0.75**2), atol=1e-6)
    actor.save(str(tmp_path / "saved"), Version(0, 1))
    again = ReferenceActor(Model(path=str(tiny), dtype="bfloat16"), Batching(), 1, False, str(tmp_path / "log"))
    again.refresh(str(tmp_path / "saved"), 1.0)
    for name, exact in actor._exact.items():
        assert (again._exact[name] == exact).all()
