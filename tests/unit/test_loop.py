"""The loop with hand-written fakes: order, staleness, accounting, replay; no Ray."""

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.commands import CheckpointDone, PublishDone, TrainDone
from configs.loading import validate
from configs.runs import RunConfig
from pipelines.heldout import HeldOut
from pipelines.ledger.ledger import Ledger
from pipelines.loop import Loop, Stages
from pipelines.online import JudgeUnreliable, OnlineSource
from pipelines.prompts import PromptSet
from pipelines.scoring import Scorer
from pipelines.timing import Stopwatch
from preference.types import CandidateGroup, Fate, JudgedGroup, JudgeFailure, Outcome, Rating, Version
from tests.factories import INITIAL, JUDGE, TRAINED, candidate, prompt, scored_pair


def config(steps=4, staleness=0, **sections):
    raw = {
        "run": {"name": "t", "root": "/tmp", "steps": steps, "max_staleness": staleness},
        "model": {"path": "/m"},
        "prompts": {"train": "/t", "heldout": "/h", "max_tokens": 64},
        "judge": {"kind": "rule", "rule": "a:b"},
        "evaluation": {"prompts": 3, "probe": 2},
        "sampling": {"prompts_per_step": 5, "candidates": 2},
    }
    return validate(RunConfig, raw | sections)


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
            made = (candidate(p.id, i, version=version) for i in range(plan.candidates))
            yield CandidateGroup(p, tuple(replace(c, id=plan.request(p, c.index).id) for c in made))

    async def load(self, directory, version):
        assert version > self.version
        self.version = version
        return 0.0


class FakeJudge:
    name = "fake"

    def __init__(self, score=lambda c: float(c.index), fails=0):
        self.score_one, self.fails = score, fails

    async def judge(self, step, group):
        if self.fails:
            self.fails -= 1
            failure = JudgeFailure(tuple(c.id for c in group.candidates), Outcome.FAILED, "boom", JUDGE)
            return JudgedGroup(group, (failure,))
        return JudgedGroup(group, tuple(Rating(c.id, self.score_one(c), JUDGE) for c in group.candidates))

    async def score(self, groups, against=None):
        return [self.score_one(g.candidates[0]) for g in groups]

    def restore(self, waiting):
        assert not list(waiting)

    async def settle(self, step):
        return []

    def waiting(self, step):
        return []

    async def consumed(self, step):
        pass


class FakeReference:
    def __init__(self):
        self.cells, self.calls, self.saved, self.version = 0, [], [], "initial"

    async def score(self, packed):
        self.cells += 1
        await asyncio.sleep(0)
        return np.full(len(packed.target), -1.0, np.float32)

    async def refresh(self, directory, alpha):
        self.calls.append(("refresh", directory.rpartition("/")[2], alpha))
        self.version = directory.rpartition("-")[2]

    async def save(self, directory):
        self.saved.append((directory.rpartition("checkpoints/")[2].partition(".")[0], self.version))


class FakeTrainer:
    ranks = 2

    def __init__(self):
        self.log = []
        self.batches = []

    async def train(self, step, batch):
        self.log.append(("train", step))
        self.batches.append(batch)
        return TrainDone(replace(TRAINED, items=batch.items, tokens=batch.tokens), 0.0)

    async def publish(self, version, directory):
        self.log.append(("publish", version.step))
        directory.mkdir(parents=True)
        return PublishDone(version, str(directory), 0, 0.0, 0.0)

    async def checkpoint(self, step, directory):
        self.log.append(("checkpoint", step))
        (directory / "weights").write_text(f"{step}")
        return CheckpointDone(step, str(directory), 0.0, ())


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
        scorer = Scorer(cfg, self.reference, self.trainer.ranks, self.ledger, self.notes)
        source = OnlineSource(cfg, prompts, self.heldout, self.sampler, self.judge, scorer, self.ledger, self.notes)
        stages = Stages(source, self.trainer, self.reference, [self.sampler], self.heldout)
        weights = directory / "weights"
        self.loop = Loop(cfg, cfg.run.steps, cfg.run.max_staleness, stages, self.ledger, self.notes, weights, version)

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
    rules = {"kind": "rule", "rule": "a:b", "max_failure_rate": 0.5}
    w = World(tmp_path / "a", config(steps=1, judge=rules), judge)
    original = w.heldout.baseline

    async def then_fail():
        await original()
        judge.fails = 2

    w.heldout.baseline = then_fail
    w.run()
    assert w.notes.reports[0].fates == Counter({Fate.TRAINED: 3, Fate.JUDGE_FAILED: 2})
    with pytest.raises(JudgeUnreliable, match=r"5 of 5 prompts, .*boom"):
        World(tmp_path / "b", config(steps=1, judge=rules), FakeJudge(fails=99)).run()


def test_a_resumed_run_replays_what_was_paid_for(tmp_path):
    first = World(tmp_path, config(steps=3)).run()
    again = World(tmp_path, config(steps=4), version=Version(1, 1)).run(done=1)
    assert [e for e in again.trainer.log if e[0] == "train"] == [("train", 2), ("train", 3), ("train", 4)]
    assert [s for s, _ in again.sampler.served] == [4]  # 2 and 3 came from the journal
    assert again.reference.cells < first.reference.cells / 2  # and their scores

    def same(a, b):
        for one, two in zip(a.cells, b.cells, strict=True):
            for x, y in zip(one, two, strict=True):
                assert (x.packed.input_ids == y.packed.input_ids).all()
                assert (x.reference == y.reference).all()

    same(first.trainer.batches[1], again.trainer.batches[0])
    same(first.trainer.batches[2], again.trainer.batches[1])
    assert [r.version for r in again.notes.reports] == [Version(1, s) for s in (2, 3, 4)]


def test_what_was_judged_when_the_driver_died_is_not_judged_again(tmp_path):
    whole = World(tmp_path / "whole", config(steps=2)).run()
    first, asked = World(tmp_path / "cut", config(steps=2)), []
    judge = first.judge.judge

    async def dies(step, group):
        if step == 2 and len(asked) == 3:
            raise RuntimeError("power cut")
        asked.extend([group.prompt.id] if step == 2 else [])
        return await judge(step, group)

    first.judge.judge = dies
    with pytest.raises(RuntimeError, match="power cut"):
        first.run()
    again = World(tmp_path / "cut", config(steps=2), version=Version(1, 1))
    sampled = []
    sample = again.sampler.sample

    def noting(prompts, plan):
        sampled.extend(p.id for p in prompts if plan.purpose == "train")
        return sample(prompts, plan)

    again.sampler.sample = noting
    again.run(done=1)
    assert len(sampled) == 2
    assert not set(sampled) & set(asked)
    x, y = whole.trainer.batches[1].cells[0][0], again.trainer.batches[0].cells[0][0]
    assert (x.packed.input_ids == y.packed.input_ids).all()
    assert (x.items == y.items).all()


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
    assert (x.packed.input_ids == y.packed.input_ids).all()
    assert (x.items == y.items).all()


def test_a_score_that_was_journaled_is_not_computed_again(tmp_path):
    """The driver dies after half of a step's cells: the other half is all that is left to do."""
    cfg = config(steps=1, batching={"micro_batch_tokens": 160})
    first = World(tmp_path, cfg)
    original, scored = first.reference.score, []

    async def dies(packed):
        if len(scored) == 2:
            raise RuntimeError("power cut")
        scored.append(packed)
        return await original(packed)

    pairs = [scored_pair(i, 60, 3, 4).item for i in range(6)]

    async def step(world):
        scorer = Scorer(cfg, world.reference, 1, world.ledger, world.notes)
        return await scorer.score(1, pairs, Stopwatch())

    first.reference.score = dies
    with pytest.raises(RuntimeError, match="power cut"):
        asyncio.run(step(first))
    first.ledger.close()
    again = World(tmp_path, cfg)
    result, _ = asyncio.run(step(again))
    again.ledger.close()
    assert [s.item for s in result] == pairs
    assert again.reference.cells == 1  # of three
    assert len(scored) == 2


def test_the_reference_moves_when_it_is_due_and_is_saved_with_the_checkpoint(tmp_path):
    cfg = config(steps=4, reference={"refresh": "periodic", "every": 2, "alpha": 0.6}, checkpoint={"every": 3})
    w = World(tmp_path, cfg).run()
    assert w.reference.calls == [("refresh", "weights-0.2", 0.6), ("refresh", "weights-0.4", 0.6)]
    assert w.reference.saved == [("step-000003", "0.2"), ("step-000004", "0.4")]


def test_an_item_is_scored_once_for_every_version_of_the_reference(tmp_path):
    cfg = config(steps=1)
    w = World(tmp_path, cfg)
    items = [scored_pair(i, 3, 2, 2).item for i in range(3)]
    scorer = Scorer(cfg, w.reference, 1, w.ledger, w.notes)

    async def steps():
        for step, version in ((1, "initial"), (2, "initial"), (3, "0.3"), (4, "initial"), (5, "0.3")):
            w.reference.version = version
            await scorer.score(step, items, Stopwatch())

    asyncio.run(steps())
    w.ledger.close()
    assert w.reference.cells == 2


def test_without_an_objective_that_wants_it_there_is_no_reference(tmp_path):
    cfg = config(steps=1)
    w = World(tmp_path, cfg)
    result, mismatched = asyncio.run(
        Scorer(cfg, None, 1, w.ledger, w.notes).score(1, [scored_pair(0, 3, 2, 2).item], Stopwatch())
    )
    w.ledger.close()
    assert all(np.isnan(a).all() for s in result for a in s.reference)
    assert mismatched == ()
