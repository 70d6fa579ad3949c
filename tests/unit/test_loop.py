"""The loop with hand-written fakes: order, staleness, accounting, replay; no Ray."""

import asyncio
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.commands import CheckpointDone, PublishDone, TrainDone
from configs.loading import validate
from pipelines.heldout import HeldOut
from pipelines.ledger import Ledger
from pipelines.online import JudgeUnreliable, OnlineLoop, Stages
from pipelines.prompts import PromptSet
from preference.reports import TrainMetrics
from preference.types import CandidateGroup, Fate, JudgedGroup, JudgeFailure, Outcome, Rating, Version
from tests.factories import INITIAL, JUDGE, candidate, prompt


def config(steps=4, staleness=0, **sections):
    raw = {
        "run": {"name": "t", "root": "/tmp", "steps": steps, "max_staleness": staleness},
        "model": {"path": "/m"},
        "prompts": {"train": "/t", "heldout": "/h", "max_tokens": 64},
        "judge": {"rule": "a:b"},
        "evaluation": {"prompts": 3, "probe": 2},
        "sampling": {"prompts_per_step": 5, "candidates": 2},
    }
    return validate(raw | sections)


class FakeSampler:
    """Answers late prompts first, so that nothing may depend on completion order."""

    def __init__(self):
        self.version = Version(0, 0)
        self.served = []

    async def sample(self, prompts, plan):
        if plan.purpose == "train":
            self.served.append((plan.step, self.version))
        version = self.version
        for p in reversed(prompts):
            await asyncio.sleep(0)
            made = tuple(candidate(f"{p.id}", i, version=version) for i in range(plan.candidates))
            yield CandidateGroup(p, made)

    async def load(self, directory, version):
        assert version > self.version
        self.version = version
        return 0.0


class FakeJudge:
    name = "fake"

    def __init__(self, score=lambda c: float(c.index), fails=0):
        self.score, self.fails = score, fails

    async def judge(self, groups):
        out = []
        for g in groups:
            if self.fails and len(g.candidates) > 1:  # a training group, not a probe
                self.fails -= 1
                failure = JudgeFailure(tuple(c.id for c in g.candidates), Outcome.FAILED, "boom", JUDGE)
                out.append(JudgedGroup(g, (failure,)))
            else:
                out.append(JudgedGroup(g, tuple(Rating(c.id, self.score(c), JUDGE) for c in g.candidates)))
        return out


class FakeReference:
    def __init__(self):
        self.cells = 0

    async def score(self, cells):
        self.cells += len(cells)
        return [np.full(len(c.target), -1.0, np.float32) for c in cells]


class FakeTrainer:
    ranks = 2

    def __init__(self):
        self.log = []
        self.batches = []

    async def train(self, step, batch):
        self.log.append(("train", step))
        self.batches.append(batch)
        metrics = TrainMetrics(0.7, 1.0, 1e-5, 0, 0, 0, 0.5, -1, -1, 0.0, batch.pairs, batch.tokens, 0.0, {})
        return TrainDone(metrics, 0.0)

    async def publish(self, version, directory):
        self.log.append(("publish", version.step))
        return PublishDone(version, str(directory), 0, 0.0, 0.0)

    async def checkpoint(self, step, directory):
        self.log.append(("checkpoint", step))
        directory.mkdir(parents=True)
        (directory / "complete.json").write_text(f'{{"step": {step}}}')
        return CheckpointDone(step, str(directory), 0.0)


class Notes:
    def __init__(self):
        self.reports, self.evaluations = [], []

    def stage(self, *args):
        pass

    def step_done(self, report):
        self.reports.append(report)

    def evaluated(self, report):
        self.evaluations.append(report)

    def message(self, text):
        pass


class World:
    def __init__(self, directory: Path, cfg, judge=None, version=INITIAL):
        self.sampler, self.judge, self.reference = FakeSampler(), judge or FakeJudge(), FakeReference()
        self.sampler.version = version
        self.trainer, self.notes = FakeTrainer(), Notes()
        self.ledger = Ledger(directory)
        prompts = PromptSet({f"p{i:02}": prompt(f"p{i:02}") for i in range(12)}, ())
        held = [prompt(f"h{i}") for i in range(3)]
        self.heldout = HeldOut(cfg, held, self.sampler, [self.judge], self.reference, self.ledger, self.notes)
        stages = Stages(self.sampler, self.judge, self.reference, self.trainer)
        weights = directory / "weights"
        self.loop = OnlineLoop(cfg, prompts, self.heldout, stages, self.ledger, self.notes, weights, version)

    def run(self, done=0):
        async def both():
            await self.heldout.baseline()
            await self.loop.run(done)

        try:
            asyncio.run(both())
        finally:
            self.ledger.close()
        return self


def test_synchronous_steps_alternate(tmp_path):
    w = World(tmp_path, config(steps=3)).run()
    expected = [("train", 1), ("publish", 1), ("train", 2), ("publish", 2), ("train", 3), ("publish", 3)]
    assert [e for e in w.trainer.log if e[0] != "checkpoint"] == expected
    assert [(s, v.step) for s, v in w.sampler.served] == [(1, 0), (2, 1), (3, 2)]
    assert [r.ages for r in w.notes.reports] == [(0,) * 5] * 3
    assert len(w.notes.evaluations) == 1


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 5), st.integers(1, 7))
def test_no_pair_is_older_than_max_staleness(tmp_path_factory, staleness, steps):
    w = World(tmp_path_factory.mktemp("run"), config(steps, staleness)).run()
    assert [r.step for r in w.notes.reports] == list(range(1, steps + 1))
    ages = [a for r in w.notes.reports for a in r.ages]
    assert max(ages) <= staleness
    assert max(ages) == min(staleness, steps - 1)  # and the allowance is used
    assert all(sum(r.fates.values()) == 5 for r in w.notes.reports)


def test_every_prompt_has_one_fate_and_a_step_without_pairs_is_skipped(tmp_path):
    w = World(tmp_path, config(steps=2), FakeJudge(score=lambda c: 0.0)).run()
    assert [r.fates for r in w.notes.reports] == [Counter({Fate.TIED: 5})] * 2
    assert [r.train for r in w.notes.reports] == [None, None]
    assert [e for e in w.trainer.log if e[0] != "checkpoint"] == []
    assert w.notes.reports[-1].version == Version(0, 0)


def test_a_failing_judge_is_counted_and_past_the_limit_stops_the_run(tmp_path):
    judge = FakeJudge()
    rules = {"rule": "a:b", "max_failure_rate": 0.5}
    w = World(tmp_path / "a", config(steps=1, judge=rules), judge)
    original = w.heldout.baseline

    async def then_fail():
        await original()
        judge.fails = 2

    w.heldout.baseline = then_fail
    w.run()
    assert w.notes.reports[0].fates == Counter({Fate.TRAINED: 3, Fate.JUDGE_FAILED: 2})
    with pytest.raises(JudgeUnreliable, match=r"5 of 5 prompts .*boom"):
        World(tmp_path / "b", config(steps=1, judge=rules), FakeJudge(fails=99)).run()


def test_a_resumed_run_replays_what_was_paid_for(tmp_path):
    first = World(tmp_path, config(steps=3)).run()
    again = World(tmp_path, config(steps=4), version=Version(1, 1)).run(done=1)
    assert [e for e in again.trainer.log if e[0] == "train"] == [("train", 2), ("train", 3), ("train", 4)]
    assert [s for s, _ in again.sampler.served] == [4]  # 2 and 3 came from the journal

    def same(a, b):
        for one, two in zip(a.cells, b.cells, strict=True):
            for x, y in zip(one, two, strict=True):
                assert (x.rows.input_ids == y.rows.input_ids).all()
                assert (x.reference == y.reference).all()

    same(first.trainer.batches[1], again.trainer.batches[0])
    same(first.trainer.batches[2], again.trainer.batches[1])
    assert [r.version for r in again.notes.reports] == [Version(1, s) for s in (2, 3, 4)]


def test_completion_order_does_not_shape_the_batch(tmp_path):
    a = World(tmp_path / "a", config(steps=1)).run()
    b = World(tmp_path / "b", config(steps=1))
    forward = b.sampler.sample

    async def other_order(prompts, plan):
        groups = [g async for g in forward(prompts, plan)]
        for g in groups[::-1]:
            yield g

    b.sampler.sample = other_order
    b.run()
    x, y = a.trainer.batches[0].cells[0][0], b.trainer.batches[0].cells[0][0]
    assert (x.rows.input_ids == y.rows.input_ids).all()
    assert x.pairs == y.pairs


def test_a_cancellation_that_arrives_with_the_result_is_not_swallowed() -> None:
    from actors.pool import remote_call

    async def scenario() -> None:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        call = asyncio.create_task(remote_call(answer, who="stage", seconds=60))
        await asyncio.sleep(0)
        answer.set_result(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(scenario())
