"""Prompts on their way through the real loop with fakes: staleness, stragglers, replacement, resumption, accounting."""

import asyncio
import random
from collections import Counter
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.loading import ConfigError
from pipelines.ledger.events import PreparedStep, read_event
from preference.types import CandidateGroup, Fate, Rating, Version
from tests.factories import JUDGE, candidate
from tests.unit.oracle import straight_line
from tests.unit.test_loop import FakeJudge, FakeReference, FakeSampler, World, config

ORDERS = st.sampled_from(["admitted", "in_time", "finished"])
BATCH = 5


class Stragglers(FakeSampler):
    """Answers come after as many turns of the event loop as are drawn for them; a few take very long."""

    def __init__(self, seed):
        super().__init__()
        self.seed, self.asked = seed, Counter()
        self.turns, self.held = [0, 1, 3, 10, 60], {}

    async def sample(self, prompts, plan):
        version = self.version
        self.asked.update((plan.step, p.id) for p in prompts if plan.purpose == "train")

        async def one(p):
            rng = random.Random(f"{self.seed} {plan.step} {p.id}")
            for _ in range(rng.choice(self.turns)):
                await asyncio.sleep(0)
            if (plan.step, p.id) in self.held:
                await self.held[plan.step, p.id].wait()
            made = (candidate(p.id, i, version=version) for i in range(plan.candidates))
            return CandidateGroup(p, tuple(replace(c, id=plan.request(p, c.index).id) for c in made))

        tasks = [asyncio.ensure_future(one(p)) for p in prompts]
        try:
            for done in asyncio.as_completed(tasks):
                yield await done
        finally:
            for task in tasks:
                task.cancel()


def world(directory, seed, steps, staleness, order, spare=0, judge=None, version=None):
    section = {"prompts_per_step": BATCH, "candidates": 2, "order": order, "spare": spare}
    cfg = config(steps, staleness, sampling=section, checkpoint={"every": 1})
    found = World(directory, cfg, judge, *([version] if version else []))
    slow = Stragglers(seed)
    slow.version = found.sampler.version
    for stage in (found.loop._stages.source, found.heldout):
        for name, value in vars(stage).items():
            if value is found.sampler:
                setattr(stage, name, slow)
    found.loop._stages = replace(found.loop._stages, consumers=[slow])
    found.sampler = slow
    return found


def prepared(w) -> list[PreparedStep]:
    events = [read_event(r) for r in w.ledger._journals["steps"] if r["event"] == "prepared"]
    return [e for e in events if isinstance(e, PreparedStep)]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(0, 4), ORDERS, st.integers(0, 6))
def test_whatever_the_timing_batches_are_full_fresh_and_accounted_for(
    tmp_path_factory, seed, steps, staleness, order, spare
):
    spare = spare if order == "finished" else 0
    w = world(tmp_path_factory.mktemp("run"), seed, steps, staleness, order, spare).run()
    assert [r.step for r in w.notes.reports] == list(range(1, steps + 1))
    events = prepared(w)
    used = [name for e in events for name in e.groups]
    stale = [name for e in events for name in e.stale]
    assert all(len(e.groups) == BATCH for e in events)
    assert len(used + stale) == len(set(used + stale))  # one fate each
    assert set(w.sampler.asked.values()) == {1}
    # What began and has no fate are the spare ones, which no step needed any more.
    assert 0 <= sum(w.sampler.asked.values()) - len(used + stale) <= spare
    for report, event in zip(w.notes.reports, events, strict=True):
        assert report.fates == +Counter({Fate.TRAINED: BATCH, Fate.STALE: len(event.stale)})
        assert max(report.ages) <= staleness
    if order != "finished":
        assert stale == []
    if order == "admitted":
        assert [len({g.step for g in w.ledger._groups() if g.name in e.groups}) for e in events] == [1] * steps


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(0, 3), ORDERS, st.integers(1, 6), st.integers(0, 14))
def test_after_a_death_at_any_time_every_prompt_has_one_fate(tmp_path_factory, seed, staleness, order, steps, calls):
    """The driver dies at its n-th judgement; what was judged is not sampled again, and no step is made twice."""
    directory, judged = tmp_path_factory.mktemp("run"), Counter()

    class Dies(FakeJudge):
        async def judge(self, step, group):
            if sum(judged.values()) == calls:
                raise RuntimeError("power cut")
            judged[group.candidates[0].id] += 1
            return await super().judge(step, group)

    first = world(directory, seed, steps, staleness, order, judge=Dies())
    with suppress(RuntimeError):
        first.run()
    done = len(first.notes.reports)
    again = world(directory, seed + 1, steps, staleness, order, version=Version(1, done)).run(done)
    events = prepared(again)
    names = [name for e in events for name in (*e.groups, *e.stale)]
    assert [e.step for e in events] == list(range(1, steps + 1))
    assert len(names) == len(set(names))
    assert all(len(e.groups) == BATCH for e in events)
    sampled_again = {n for (step, p) in again.sampler.asked for n in [again_name(again, step, p)]}
    assert not sampled_again & set(judged)
    ages = [a for r in again.notes.reports for a in r.ages]
    assert max(ages, default=0) <= staleness


def again_name(w, step, prompt_id):
    source = w.loop._stages.source
    return next(p.name for p in source._batch(step) if p.prompt.id == prompt_id)


def test_what_grows_too_old_is_dropped_counted_and_replaced(tmp_path):
    """One prompt of the first step takes until the fifth: the loop goes on without it, with another in its place."""
    w = world(tmp_path, 0, 6, 1, "finished")
    slow, gate = w.loop._stages.source._batch(1)[2], asyncio.Event()
    w.sampler.turns, w.sampler.held = [0], {(1, slow.prompt.id): gate}
    after = w.heldout.after

    async def opened(step, version):
        if step == 5:
            gate.set()
        await after(step, version)

    w.heldout.after = opened
    w.run()
    events = prepared(w)
    assert [e.stale for e in events] == [(), (slow.name,), (), (), (), ()]
    assert [r.fates[Fate.STALE] for r in w.notes.reports] == [0, 1, 0, 0, 0, 0]
    assert all(r.fates[Fate.TRAINED] == BATCH for r in w.notes.reports)


@pytest.mark.parametrize("tied", [False, True])
def test_staleness_zero_is_the_straight_line(tmp_path, tied):
    """The same batches, bit by bit, as fifty lines without tasks, queues or ledger make."""

    def score(c):
        return 0.0 if tied and c.prompt_id in ("p01", "p04") else float(c.index)

    cfg = config(steps=4)
    w = World(tmp_path, cfg, FakeJudge(score=score)).run()
    prompts = w.loop._stages.source._prompts
    expected = asyncio.run(straight_line(cfg, prompts, FakeSampler(), FakeJudge(score=score), FakeReference()))
    assert len(w.trainer.batches) == len(expected) == 4
    for one, other in zip(w.trainer.batches, expected, strict=True):
        for mine, theirs in zip(one.cells, other.cells, strict=True):
            for x, y in zip(mine, theirs, strict=True):
                assert (x.packed.input_ids == y.packed.input_ids).all()
                assert (x.packed.target == y.packed.target).all()
                assert np.array_equal(x.reference, y.reference)
                assert np.array_equal(x.items, y.items)


def test_weights_that_a_step_without_pairs_left_alone_do_not_age(tmp_path):
    class Ties(FakeJudge):
        async def judge(self, step, group):
            judged = await super().judge(step, group)
            if step > 3:
                return judged
            return replace(judged, judgements=tuple(Rating(c.id, 0.0, JUDGE) for c in group.candidates))

    w = world(tmp_path, 3, 5, 0, "finished", judge=Ties()).run()
    assert [r.fates for r in w.notes.reports] == [Counter({Fate.TIED: BATCH})] * 3 + [
        Counter({Fate.TRAINED: BATCH})
    ] * 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sampling": {"spare": 2}}, "spare = 2 with order = admitted"),
        (
            {
                "sampling": {"order": "finished"},
                "judge": {"kind": "human"},
                "evaluation": {"judge": {"kind": "rule", "rule": "a:b"}},
            },
            "sampling.order = finished with people as judges",
        ),
        (
            {
                "sampling": {"order": "in_time"},
                "opponents": [{"player": "previous"}],
                "pairing": {"strategy": "versus"},
            },
            "sampling.order = in_time with opponents",
        ),
    ],
)
def test_orders_that_cannot_be_are_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        config(**fields)
