"""New weights while answers are under way, on a real engine: they go on, begin anew, or are finished first."""

import asyncio

import pytest
from transformers import AutoModelForCausalLM

import actors.sampler
from actors.faults import Faults
from actors.requests import SamplePlan
from actors.sampler import SamplerPool
from actors.weights import WeightWriter
from configs.loading import load_config
from configs.runs import RunConfig
from preference.types import Message, Prompt, Version
from tests.integration.conftest import TINY

PROMPTS = [Prompt(f"p{i}", (Message("user", f"{i}"),), tuple(range(5 + i, 25 + i))) for i in range(3)]


def written(model, directory, step):
    writer = WeightWriter(directory, Version(0, step))
    writer.add({n: t.clone() for n, t in model.state_dict().items() if n != "lm_head.weight"})
    writer.finish()
    return str(directory)


async def under_way(pool, step):
    """Answers that the engine has begun and will be at for a hundred tokens."""

    async def collect():
        plan = SamplePlan(step, "train", 2, 100, 1.0, 1.0, 0)
        return [c async for g in pool.sample(PROMPTS, plan) for c in g.candidates]

    work, desk = asyncio.ensure_future(collect()), pool._desks[0]
    while not desk.asked or desk.unsent:  # until the engine has them
        await asyncio.sleep(0)
    return work


async def running(pool):
    return (await pool._crew.call(0, "health", lambda a: a.health.remote())).running


async def versions_over_a_load(pool, mode, step, directory):
    """(oldest, newest) weights of every answer, where those of ``step`` arrive while they are sampled."""
    pool._update = mode
    work = await under_way(pool, step)
    await pool.load(directory, Version(0, step))
    return {(c.version_min.step, c.version_max.step) for c in await work}


async def withdrawn(pool):
    """How many answers the engine is at once nobody waits for them."""
    work = await under_way(pool, 9)
    assert await running(pool) == 6
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    while pool._desks[0].asked or pool._desks[0].withdrawn:
        await asyncio.sleep(0)
    return await running(pool)


def test_answers_under_way_go_on_begin_anew_are_finished_or_are_withdrawn(
    ray_here, overrides, tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(actors.sampler, "_POLL_SECONDS", 0.005)  # a token or two: whatever comes is in between
    config = load_config(RunConfig, TINY, overrides("updates", "sampling.max_tokens=100", "prompts.max_tokens=24"))
    model = AutoModelForCausalLM.from_pretrained(tiny)
    pool = SamplerPool(config, tmp_path, Faults(config.recovery))

    async def everything():
        await pool.ready()
        found = {}
        for step, mode in enumerate(("in_flight", "requeue", "finish"), start=1):
            found[mode] = await versions_over_a_load(pool, mode, step, written(model, tmp_path / mode, step))
        left = [await withdrawn(pool), await withdrawn(pool)]  # a second time: the names are free again
        return found, left, len(await (await under_way(pool, 9)))

    try:
        found, left, answered = asyncio.run(everything())
    finally:
        pool.close()
    assert found == {"in_flight": {(0, 1)}, "requeue": {(2, 2)}, "finish": {(2, 2)}}
    assert left == [0, 0]
    assert answered == 6
