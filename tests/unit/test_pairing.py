"""Pairs and fates: nothing wins by being first, nothing is lost silently."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preference.pairing import Paired, PairingRules, Unpaired, make_pair
from preference.types import CandidateGroup, Fate, FinishReason, JudgedGroup, JudgeFailure, Outcome, Rating
from tests.factories import JUDGE, candidate, judged, prompt


def test_best_against_worst():
    outcome = make_pair(judged([0.1, 0.9, -0.5, 0.3]), PairingRules())
    assert isinstance(outcome, Paired)
    assert (outcome.pair.chosen.index, outcome.pair.rejected.index) == (1, 2)
    assert outcome.pair.margin == pytest.approx(1.4)


@pytest.mark.parametrize("strategy", ["best_vs_worst", "best_vs_random", "random"])
def test_equal_scores_are_a_tie_whatever_the_strategy(strategy):
    assert make_pair(judged([0.5] * 4), PairingRules(strategy)) == Unpaired(Fate.TIED)


def test_a_margin_at_the_limit_is_a_tie():
    assert make_pair(judged([0.0, 0.25]), PairingRules(min_margin=0.25)) == Unpaired(Fate.TIED)
    assert isinstance(make_pair(judged([0.0, 0.26]), PairingRules(min_margin=0.25)), Paired)


def test_identical_candidates_make_no_pair():
    same = tuple(candidate("p", 0) for _ in range(2))
    ratings = (Rating("p/0", 1.0, JUDGE),)
    assert make_pair(JudgedGroup(CandidateGroup(prompt(), same), ratings), PairingRules()) == Unpaired(Fate.IDENTICAL)


@pytest.mark.parametrize(("outcome", "fate"), [(Outcome.FAILED, Fate.JUDGE_FAILED), (Outcome.ABSTAIN, Fate.ABSTAINED)])
def test_a_judge_that_failed_decides_nothing(outcome, fate):
    group = judged([1.0, 0.0]).group
    failure = JudgeFailure(tuple(c.id for c in group.candidates), outcome, "boom", JUDGE)
    assert make_pair(JudgedGroup(group, (failure,)), PairingRules()) == Unpaired(fate)


def cut_off(scores, cut):
    """Candidates with ``scores``; those numbered in ``cut`` lack an end-of-sequence token."""
    finish = [FinishReason.LENGTH if i in cut else FinishReason.STOP for i in range(len(scores))]
    candidates = tuple(candidate("p", i, finish=f) for i, f in enumerate(finish))
    ratings = tuple(Rating(c.id, s, JUDGE) for c, s in zip(candidates, scores, strict=True))
    return JudgedGroup(CandidateGroup(prompt(), candidates), ratings)


def winner(group, **rules):
    outcome = make_pair(group, PairingRules(**rules))
    return outcome.pair.chosen.index if isinstance(outcome, Paired) else outcome.fate


def test_missing_eos_policies():
    group = cut_off([0.9, 0.5, 0.1], cut={0})
    assert winner(group, missing_eos="allow") == 0
    assert winner(group, missing_eos="penalise", missing_eos_penalty=1.0) == 1
    assert winner(group, missing_eos="never_chosen") == 1
    assert winner(group, missing_eos="drop") == 1
    assert winner(cut_off([0.9, 0.1], cut={0, 1}), missing_eos="never_chosen") is Fate.UNFINISHED
    assert winner(cut_off([0.9, 0.1], cut={0}), missing_eos="drop") is Fate.UNFINISHED


@given(
    st.lists(st.one_of(st.none(), st.floats(-1, 1)), min_size=2, max_size=6),
    st.sampled_from(["best_vs_worst", "best_vs_random", "random"]),
    st.floats(0, 0.5),
)
def test_a_pair_always_prefers_the_higher_score_by_more_than_the_margin(scores, strategy, margin):
    outcome = make_pair(judged(scores), PairingRules(strategy, margin))
    if isinstance(outcome, Paired):
        chosen, rejected = scores[outcome.pair.chosen.index], scores[outcome.pair.rejected.index]
        assert chosen is not None
        assert rejected is not None
        assert chosen - rejected > margin
    assert make_pair(judged(scores), PairingRules(strategy, margin)) == outcome
