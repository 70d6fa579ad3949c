"""Opinions are bought once, whatever is interrupted; what they cost adds up."""

import asyncio
from dataclasses import replace

import pytest

from actors.judges.combined import Comparing, Rated
from configs.judges import HttpJudge, RuleJudge
from pipelines.judging.judges import costs_of, spent_on
from pipelines.judging.remembered import Memory, costs, judge_identity, remembering
from pipelines.ledger.journal import Journal, LedgerError
from pipelines.ledger.judged import judgement_record
from preference.types import CandidateGroup, JudgedGroup, JudgeFailure, JudgeInfo, Match, Outcome, Rating, Verdict
from tests.factories import JUDGE, candidate, prompt


class Bought:
    """A judge that compares and rates, at a price; fails where the prompt's name says so, stops when it is told to."""

    name = "bought"

    def __init__(self, stop_after=10**6, price=0.25):
        self.asked, self.stop_after, self.price = [], stop_after, price

    def _ask(self, name):
        if len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked.append(name)

    async def compare(self, matches):
        found = []
        for m in matches:
            self._ask(m.ids)
            if m.prompt.id.startswith("bad"):
                found.append(JudgeFailure(m.ids, Outcome.FAILED, "boom", JUDGE, cost=self.price))
            else:
                found.append(Verdict(*m.ids, Outcome.FIRST, 0.75, JUDGE, rationale="why", cost=self.price))
        return found

    async def rate(self, groups):
        found = []
        for group in groups:
            for c in group.candidates:
                self._ask(c.id)
                found.append(Rating(c.id, float(c.index), JUDGE, cost=self.price))
        return found

    async def ready(self):
        pass

    def close(self):
        pass


def group(name, size=2):
    return CandidateGroup(prompt(name), tuple(candidate(name, i) for i in range(size)))


def matches(*names):
    return [Match(g.prompt, *g.candidates) for g in map(group, names)]


def rule(path, judge, asked, close=True):
    memory = Memory(path)
    arbiter = remembering(Comparing(judge), memory)
    try:
        return asyncio.run(arbiter.rule(1, asked)), memory
    finally:
        arbiter.close()


def test_what_was_said_is_not_asked_again_by_a_later_process(tmp_path):
    path = tmp_path / "judgements.jsonl"
    first, second = Bought(), Bought()
    before, _ = rule(path, first, matches("a", "b"))
    after, memory = rule(path, second, matches("b", "c", "a"))
    assert second.asked == [("c/0", "c/1")]
    assert [after[2], after[0]] == before
    assert (memory.found, memory.asked) == (2, 1)
    assert memory.costs == {JUDGE.definition_hash: 0.5}


def test_an_interruption_loses_only_what_was_not_answered(tmp_path):
    path = tmp_path / "judgements.jsonl"
    with pytest.raises(KeyboardInterrupt):
        rule(path, Bought(stop_after=2), matches("a", "b", "c", "d"))
    with path.open("ab") as file:
        file.write(b"0badc0de {torn")  # as a process leaves it that dies while it writes
    again = Bought()
    rulings, _ = rule(path, again, matches("a", "b", "c", "d"))
    assert len(again.asked) == 2
    assert len(rulings) == 4


def test_what_comes_after_the_end_is_not_written_to_whatever_file_has_its_place(tmp_path):
    memory = Memory(tmp_path / "judgements.jsonl")
    [match] = matches("a")
    memory.close()
    with (tmp_path / "other").open("wb") as other:
        memory.keep("late", asyncio.run(Bought().compare([match])))
        memory.close()
        other.write(b"mine")
    assert (tmp_path / "other").read_bytes() == b"mine"
    assert (tmp_path / "judgements.jsonl").read_bytes() == b""


def test_two_processes_do_not_buy_the_same_side_by_side(tmp_path):
    path = tmp_path / "judgements.jsonl"
    first = Memory(path)
    with pytest.raises(LedgerError, match="in use by another process"):
        Memory(path)
    first.close()
    Memory(path).close()


def test_failures_are_tried_again_but_their_cost_is_remembered(tmp_path):
    path = tmp_path / "judgements.jsonl"
    rule(path, Bought(), matches("bad", "good"))
    again = Bought()
    _, memory = rule(path, again, matches("bad", "good"))
    assert again.asked == [("bad/0", "bad/1")]
    assert memory.costs == {JUDGE.definition_hash: 0.5}


@pytest.mark.parametrize(
    "other",
    [
        lambda m: replace(m, first=replace(m.first, text="other")),
        lambda m: replace(m, first=replace(m.first, token_ids=(1, 2))),
        lambda m: replace(m, prompt=replace(m.prompt, meta='{"reference": "x"}')),
        lambda m: replace(m, first=m.second, second=m.first),
    ],
    ids=["text", "tokens", "reference", "order"],
)
def test_another_question_is_asked(tmp_path, other):
    path = tmp_path / "judgements.jsonl"
    [match] = matches("a")
    rule(path, Bought(), [match])
    again = Bought()
    rule(path, again, [other(match)])
    assert len(again.asked) == 1


def test_ratings_are_remembered_by_group(tmp_path):
    groups = [group("a", 3), group("b", 2)]
    first, second = Bought(), Bought()
    for judge in (first, second):
        rater = remembering(judge, Memory(tmp_path / "r.jsonl"))
        found = asyncio.run(rater.rate(groups))
        rater.close()
        assert [r.candidate_id for r in found] == ["a/0", "a/1", "a/2", "b/0", "b/1"]
    assert len(first.asked) == 5
    assert second.asked == []


# -- costs -----------------------------------------------------------------------------------------------------------


def test_a_rating_that_several_verdicts_rest_on_is_paid_for_once():
    three = group("a", 3)
    a, b, c = three.candidates
    asked = [Match(three.prompt, a, b), Match(three.prompt, b, c), Match(three.prompt, a, c)]

    async def all_at_once():
        rulings = await Rated(Bought(), 1.0).rule(1, asked)
        return sum(r.stands.cost for r in rulings)

    assert asyncio.run(all_at_once()) == pytest.approx(3 * 0.25)


def http(model, **fields):
    return HttpJudge(kind="http", url="http://127.0.0.1:9/v1", model=model, **fields)


def ledger(tmp_path, *groups):
    (tmp_path / "ledger").mkdir(exist_ok=True)
    journal = Journal(tmp_path / "ledger" / "judgements.jsonl")
    for state, judged in groups:
        journal.append(judgement_record(1, judged, state))
    journal.close()


def test_what_a_run_has_spent_is_in_its_journals_once(tmp_path):
    one = Verdict("a/0", "a/1", Outcome.FIRST, 0.9, JudgeInfo("m", "paid"), seconds=0.5, cost=0.25)
    two = Verdict("a/0", "a/1", Outcome.FIRST, 0.9, JudgeInfo("m", "paid"), seconds=0.7, cost=0.25)
    overruled = replace(one, judge=JudgeInfo("first", "cheap"), cost=0.125)
    waiting = JudgedGroup(group("a"), (one,), (overruled,))
    decided = JudgedGroup(group("a"), (one, two), (overruled,))  # the same again, and what came later
    ledger(tmp_path, ("waiting", waiting), ("decided", decided))
    rule(tmp_path / "ledger" / "heldout-judge.jsonl", Bought(), matches("a", "b"))
    assert costs_of(tmp_path) == {"paid": 0.5, "cheap": 0.125, JUDGE.definition_hash: 0.5}
    assert costs_of(tmp_path / "nothing") == {}
    assert costs([]) == {}


def test_each_judge_is_charged_with_its_own_and_with_what_nobody_can_be_told_from():
    from actors.judges.http import definitions

    one, other = http("one"), http("other", mode="pointwise")
    (plain, certain), (theirs, _) = definitions(one), definitions(other)
    spent = {plain: 1.0, certain: 2.0, theirs: 4.0, "a panel of both": 8.0}
    assert spent_on(one, [one, other], spent) == 11.0
    assert spent_on(other, [one, other], spent) == 12.0
    assert spent_on(one, [one], {}) == 0.0


# -- whose memory ----------------------------------------------------------------------------------------------------


def test_a_memory_is_of_one_judge_its_files_and_its_code(tmp_path, monkeypatch):
    guidelines = tmp_path / "g.txt"
    guidelines.write_text("short is better")
    judge = http("m", guidelines=str(guidelines))
    base = judge_identity(judge, "")
    assert judge_identity(judge.model_copy(update={"concurrency": 3, "url": "http://elsewhere"}), "") == base
    assert judge_identity(judge.model_copy(update={"tie_band": 0.2}), "") != base
    guidelines.write_text("long is better")
    assert judge_identity(judge, "") != base
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rule_of_memory.py").write_text("def rule(p, r): return [0.0] * len(r)\n")
    rule_judge = RuleJudge(rule="rule_of_memory:rule")
    base = judge_identity(rule_judge, "")
    (tmp_path / "rule_of_memory.py").write_text("def rule(p, r): return [1.0] * len(r)\n")
    assert judge_identity(rule_judge, "") != base
    assert judge_identity(RuleJudge(rule="no_such_package.at_all:rule"), "") != base  # its actors say what is wrong
