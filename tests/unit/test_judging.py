"""The judging stage over people whose answers come when they come: nothing is lost, asked twice or decided twice."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.judges.combined import Comparing, Escalation, People
from pipelines.annotate.judge import HumanAnswer, match_item
from pipelines.judging.stage import JudgeStage
from preference.pairing import PairingRules, make_items
from preference.panel import EscalationRules
from preference.types import CandidateGroup, Fate, JudgeFailure, Outcome, Verdict
from tests.factories import JUDGE, candidate, prompt

RULES = PairingRules()


def group(name, size=2):
    return CandidateGroup(prompt(name), tuple(candidate(name, i) for i in range(size)))


def won(match, p=1.0):
    outcome = Outcome.TIE if p == 0.5 else Outcome.FIRST if p > 0.5 else Outcome.SECOND
    return Verdict(*match.ids, outcome, p, JUDGE)


class Crowd:
    """In the place of ``HumanPool``: answers what ``answer`` says, of all that was asked and is not consumed."""

    name = "crowd"

    def __init__(self, answer):
        self.answer, self.asked, self.consumed_ids = answer, {}, set()

    async def submit(self, step, matches):
        for match in matches:
            name = match_item(match).id
            assert name not in self.asked, "asked twice"
            self.asked[name] = (step, match)

    async def collect(self, step):
        return [
            answered
            for name, (asked, match) in self.asked.items()
            if (name not in self.consumed_ids or asked == step)
            and (answered := self.answer(name, asked, match, step)) is not None
        ]

    async def consumed(self, step, ids):
        self.consumed_ids |= set(ids)

    async def ready(self):
        pass

    def close(self):
        pass


def said(name, asked, match, p=1.0, written=()):
    return HumanAnswer(name, asked, won(match, p), written)


def stage(people, arbiter=None, rules=RULES, encode=lambda p, text: (7, 8, 9), budget=1000, say=print):
    return JudgeStage(arbiter or People(people), people, rules, encode, budget, say)


async def one_step(judging, step, groups):
    now = [await judging.judge(step, g) for g in groups]
    settled = [g for g in now if g is not None] + await judging.settle(step)
    waiting = judging.waiting(step)
    await judging.consumed(step)
    return settled, waiting


@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(2, 4), min_size=1, max_size=5), steps=st.integers(1, 4))
def test_every_group_is_decided_once_or_still_waits(seed, sizes, steps):
    rng = random.Random(seed)
    known = {}

    def answer(name, asked, match, step):
        """Whoever has answered has answered; the others answer with probability 0.6 whenever they are looked at."""
        if name not in known and rng.random() < 0.6:
            known[name] = rng.random()
        return said(name, asked, match, known[name]) if name in known else None

    async def go():
        people = Crowd(answer)
        judging = stage(people)
        decided, counted = [], 0
        for step in range(1, steps + 1):
            groups = [group(f"s{step}p{i}", size) for i, size in enumerate(sizes)]
            settled, waiting = await one_step(judging, step, groups)
            decided += settled
            fresh = [g for g in settled if g.group.prompt.id.startswith(f"s{step}")]
            assert len(fresh) + len(waiting) == len(sizes)
            counted += len(settled)
        open_now = [g for s in range(1, steps + 1) for g in judging.waiting(s)]
        names = [g.group.prompt.id for g in decided + open_now]
        assert len(names) == len(set(names)) == steps * len(sizes)
        assert all(make_items(g, RULES).fate is not Fate.WAITING for g in decided)

    asyncio.run(go())


def test_what_waited_is_taken_up_again_by_a_later_attempt():
    async def go():
        silent = Crowd(lambda *_: None)
        before = stage(silent)
        settled, waiting = await one_step(before, 1, [group("a"), group("b")])
        assert settled == []
        people = Crowd(lambda name, asked, match, step: said(name, asked, match))
        people.asked = silent.asked  # the store outlives the run
        after = stage(people)
        after.restore((1, g) for g in waiting)
        settled, _ = await one_step(after, 2, [group("c")])
        assert sorted(g.group.prompt.id for g in settled) == ["a", "b", "c"]

    asyncio.run(go())


def test_a_written_answer_becomes_the_chosen_one():
    async def go():
        people = Crowd(lambda name, asked, match, step: said(name, asked, match, 1.0, ("better",)))
        ((judged,), _) = await one_step(stage(people), 1, [group("a", 3)])
        (pair,) = make_items(judged, RULES).items
        assert (pair.chosen.text, pair.chosen.player, pair.chosen.token_ids) == ("better", "human", (7, 8, 9))

    asyncio.run(go())


@pytest.mark.parametrize("fault", ["long", "template"])
def test_a_written_answer_that_cannot_be_trained_on_is_said_and_left_out(fault):
    def encode(p, text):
        if fault == "template":
            raise ValueError("template_mismatch")
        return (1,) * 2000

    async def go():
        people = Crowd(lambda name, asked, match, step: said(name, asked, match, 1.0, ("better",)))
        heard = []
        ((judged,), _) = await one_step(stage(people, encode=encode, say=heard.append), 1, [group("a")])
        assert len(judged.group.candidates) == 2
        assert ("template_mismatch" if fault == "template" else "more than 1000") in heard[0]

    asyncio.run(go())


class Unsure:
    """Compares, sure only where the prompt's name says so."""

    name = "unsure"

    async def compare(self, matches):
        return [won(m, 0.9 if m.prompt.id.startswith("sure") else 0.52) for m in matches]

    async def ready(self):
        pass

    def close(self):
        pass


def test_people_are_asked_about_what_the_first_judge_is_unsure_of_and_its_word_is_kept_beside_theirs():
    async def go():
        people = Crowd(lambda name, asked, match, step: said(name, asked, match, 0.0))
        rules = EscalationRules(0.1, True, True, 0.0, 0)
        judging = stage(people, Escalation(Comparing(Unsure()), People(people), rules))
        sure, unsure = group("sure"), group("unsure")
        at_once = await judging.judge(1, sure)
        assert at_once is not None
        assert at_once.overruled == ()
        assert await judging.judge(1, unsure) is None
        (judged,) = await judging.settle(1)
        assert [j.outcome for j in judged.judgements] == [Outcome.SECOND]
        assert [j.probability for j in judged.overruled] == [0.52]
        assert len(people.asked) == 1

    asyncio.run(go())


def test_an_audit_that_fails_leaves_the_first_verdict_standing():
    class Fails(Unsure):
        async def compare(self, matches):
            return [JudgeFailure(m.ids, Outcome.FAILED, "boom", JUDGE) for m in matches]

    async def go():
        rules = EscalationRules(0.1, True, True, 1.0, 0)
        escalation = Escalation(Comparing(Unsure()), Comparing(Fails()), rules)
        judging = JudgeStage(escalation, None, RULES, lambda p, t: (), 1000, print)
        sure, unsure = await judging.judge(1, group("sure")), await judging.judge(1, group("unsure"))
        assert [type(j) for j in sure.judgements] == [Verdict]
        assert [j.error for j in sure.overruled] == ["boom"]
        assert [j.error for j in unsure.judgements] == ["boom"]  # unsure and then nothing: nobody has decided
        assert make_items(unsure, RULES).fate is Fate.JUDGE_FAILED

    asyncio.run(go())
