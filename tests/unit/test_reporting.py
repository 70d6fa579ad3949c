"""What the loop tells those who watch: enough to trace judgements, draw a timeline, and compare prompt by prompt."""

import math

import pytest

from pipelines.timing import Stopwatch
from preference.types import JudgedGroup
from tests.unit.test_loop import FakeJudge, World, config


def test_a_report_carries_its_judgements_times_and_held_out_scores(tmp_path):
    world = World(tmp_path, config(steps=2)).run()
    for report in world.notes.reports:
        assert len(report.judged) == 5
        assert all(isinstance(g, JudgedGroup) and g.judgements for g in report.judged)
        assert report.waiting == ()
        for stage in report.stages:
            assert stage.began <= stage.ended
            assert stage.ended - stage.began >= stage.seconds - 1e-6 or stage.name == "judge"  # which overlaps itself
    (evaluation,) = world.notes.evaluations
    assert [p.prompt_id for p in evaluation.prompts] == ["h0", "h1", "h2"]
    assert all(p.before == p.after == (0.0,) for p in evaluation.prompts)


def test_groups_that_wait_for_people_are_told_with_their_step(tmp_path):
    class Asking(FakeJudge):
        def __init__(self):
            super().__init__()
            self.asked = {}

        async def judge(self, step, group):
            judged = await super().judge(step, group)
            if group.prompt.id.endswith("3"):
                self.asked[step] = [JudgedGroup(group, ())]
                return None
            return judged

        def waiting(self, step):
            return self.asked.get(step, [])

    world = World(tmp_path, config(steps=3), Asking()).run()
    told = {r.step: [g.group.prompt.id for g in r.waiting] for r in world.notes.reports}
    assert {step: names for step, names in told.items() if names} == {
        step: [g.group.prompt.id for g in groups] for step, groups in world.judge.asked.items()
    }
    assert any(told.values())
    for report in world.notes.reports:
        assert len(report.judged) + len(report.waiting) == 5


def test_a_stage_reaches_from_its_first_start_to_its_last_end(monkeypatch):
    now = iter([0.0, 10.0, 12.0, 20.0, 21.0])
    monkeypatch.setattr("pipelines.timing.time.monotonic", lambda: next(now))
    monkeypatch.setattr("pipelines.timing.time.time", lambda: 1000.0)
    watch = Stopwatch()
    for tokens in (3, 4):
        with watch.stage("train", tokens):
            pass
    (stage,) = watch.stages()
    assert (stage.seconds, stage.tokens) == (3.0, 7)
    assert (stage.began, stage.ended) == (1010.0, 1021.0)
    assert stage.tokens_per_s == pytest.approx(7 / 3)
    assert not math.isnan(stage.began)
