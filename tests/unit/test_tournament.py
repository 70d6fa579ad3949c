"""Tournaments: the fewest questions, the right answers, and the same course again from a journal."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preference.tournament import distinct, games, next_matches, standing_of
from preference.types import CandidateGroup, JudgeFailure, Outcome, Verdict
from tests.factories import JUDGE, candidate, prompt

GOALS = ["best_and_worst", "best_and_other", "two", "all"]


def group(n):
    return CandidateGroup(prompt(), tuple(candidate("p", i) for i in range(n)))


def verdict(match, p):
    outcome = Outcome.TIE if p == 0.5 else Outcome.FIRST if p > 0.5 else Outcome.SECOND
    return Verdict(match.first.id, match.second.id, outcome, p, JUDGE)


def failure(match, outcome=Outcome.FAILED):
    return JudgeFailure(match.ids, outcome, "boom", JUDGE)


def play(group, goal, judge, seed=0, may_win=None):
    """(everything that was judged, rounds); ``judge`` turns a match into a judgement."""
    judged, rounds = [], 0
    while matches := next_matches(group, judged, goal, seed, may_win):
        assert len({frozenset(m.ids) for m in matches}) == len(matches)
        judged += [judge(m) for m in matches]
        rounds += 1
        assert rounds < 50
    asked = [frozenset((j.first_id, j.second_id) if isinstance(j, Verdict) else j.candidate_ids) for j in judged]
    assert len(set(asked)) == len(asked), "a match was asked twice"
    assert all(len(ids) == 2 for ids in asked)
    return judged, rounds


def by_quality(quality):
    return lambda m: verdict(m, 0.9 if quality[m.first.index] > quality[m.second.index] else 0.2)


def most(goal, n):
    return {"best_and_worst": math.ceil(3 * n / 2) - 2, "best_and_other": n - 1, "two": 1, "all": n * (n - 1) // 2}[
        goal
    ]


@settings(deadline=None)
@given(st.integers(2, 12).flatmap(lambda n: st.permutations(range(n))), st.integers(0, 5), st.sampled_from(GOALS))
def test_a_transitive_judge_is_asked_no_more_than_needed_and_its_best_and_worst_are_found(quality, seed, goal):
    entrants = group(len(quality))
    judged, _ = play(entrants, goal, by_quality(quality), seed)
    standing = standing_of(entrants.candidates, judged, goal, seed)
    assert standing.open == ()
    assert standing.played == len(judged) <= most(goal, len(quality))
    if goal in ("two", "all"):
        assert len(judged) == most(goal, len(quality))
    if goal in ("best_and_worst", "best_and_other"):
        assert quality[standing.best.index] == max(quality)
    if goal == "best_and_worst":
        assert quality[standing.other.index] == min(quality)
    if goal in ("best_and_other", "two"):
        assert standing.best is not standing.other
        assert quality[standing.best.index] > quality[standing.other.index]


@pytest.mark.parametrize(
    ("n", "calls", "rounds"), [(2, 1, 1), (3, 3, 2), (4, 4, 2), (8, 10, 3), (9, 12, 4), (16, 22, 4)]
)
def test_worst_case_counts_and_rounds(n, calls, rounds):
    judged, took = play(group(n), "best_and_worst", by_quality(range(n)))
    assert (len(judged), took) == (calls, rounds)
    assert calls < n * (n - 1) / 2 or n < 4


@settings(deadline=None)
@given(
    st.integers(2, 8),
    st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0, None]), min_size=28, max_size=28),
    st.sets(st.integers(0, 7)),
    st.sampled_from(GOALS),
    st.integers(0, 3),
)
def test_whatever_the_judge_says_it_ends_asks_nothing_twice_and_replays(n, answers, finished, goal, seed):
    """Ties, failures, cycles, and candidates that may not win."""
    entrants = group(n)
    may_win = {c.id for c in entrants.candidates if c.index in finished}

    def judge(match):
        i, j = sorted((match.first.index, match.second.index))
        answer = answers[j * (j - 1) // 2 + i]
        return failure(match) if answer is None else verdict(match, answer if match.first.index == i else 1 - answer)

    judged, _ = play(entrants, goal, judge, seed, may_win)
    standing = standing_of(entrants.candidates, judged, goal, seed, may_win)
    assert standing.played == len(judged)
    if not may_win:
        assert judged == []
        assert standing.best is None
    elif goal != "all":
        assert standing.best.id in may_win
    assert len(judged) <= most(goal, n) + any(isinstance(j, JudgeFailure) for j in judged)
    assert standing_of(entrants.candidates, judged[::-1], goal, seed, may_win) == standing


def test_matches_of_a_round_do_not_wait_for_each_other():
    entrants = group(8)
    first = next_matches(entrants, [], "best_and_worst", 0)
    assert len(first) == 4
    judged = [by_quality(range(8))(m) for m in first[:2]]
    assert next_matches(entrants, judged, "best_and_worst", 0) == first[2:]
    judged += [by_quality(range(8))(m) for m in first[2:]]
    assert len(next_matches(entrants, judged, "best_and_worst", 0)) == 4  # both ends at once


def test_identical_candidates_never_meet():
    same = [replace(candidate("p", 0), id=f"same{i}") for i in range(3)]
    entrants = CandidateGroup(prompt(), (*same, candidate("p", 1)))
    judged, _ = play(entrants, "all", lambda m: verdict(m, 0.9))
    assert len(judged) == 1
    assert next_matches(CandidateGroup(prompt(), tuple(same)), [], "all", 0) == ()
    assert [c.id for c in distinct(same, preferred={"same1"})] == ["same1"]


def test_a_failure_is_no_defeat():
    """0 beats 2 beats 1, and nobody can compare 0 with 1: they are told apart through 2, or not at all."""

    def judge(match):
        ids = {match.first.index, match.second.index}
        return failure(match) if ids == {0, 1} else verdict(match, 0.9 if match.first.index == min(ids - {1}) else 0.1)

    found = set()
    for seed in range(20):
        judged, _ = play(group(3), "best_and_worst", judge, seed)
        standing = standing_of(group(3).candidates, judged, "best_and_worst", seed)
        found.add((standing.best.index, standing.other.index))
    assert (0, 1) in found
    assert all(best == other for best, other in found - {(0, 1)})


def test_one_more_match_joins_what_failures_kept_apart():
    """Of two decided first rounds and two failed second ones, best and worst may come from different first rounds."""
    joined = 0
    for seed in range(20):
        entrants, judged = group(4), []
        for p in (0.9, None, 0.7):
            matches = next_matches(entrants, judged, "best_and_worst", seed)
            judged += [failure(m) if p is None else verdict(m, p) for m in matches]
        standing = standing_of(entrants.candidates, judged, "best_and_worst", seed)
        joined += standing.played == 5
        assert standing.open == ()
        direct = {frozenset((g.first, g.second)) for g in games(judged)}
        assert frozenset((standing.best.id, standing.other.id)) in direct
    assert 0 < joined < 20


def test_ties_are_settled_by_the_seed_and_not_by_who_stands_first():
    won = set()
    for seed in range(30):
        judged, _ = play(group(4), "best_and_worst", lambda m: verdict(m, 0.5), seed)
        won.add(standing_of(group(4).candidates, judged, "best_and_worst", seed).best.index)
    assert won == {0, 1, 2, 3}


def test_several_verdicts_on_a_match_are_averaged_and_undecided_ones_are_no_evidence():
    one, two = group(2).candidates
    both = [Verdict(one.id, two.id, Outcome.FIRST, 0.6, JUDGE), Verdict(two.id, one.id, Outcome.FIRST, 0.9, JUDGE)]
    assert standing_of((one, two), both, "two", 0).best is two
    undecided = replace(both[0], outcome=Outcome.ABSTAIN)
    assert games([undecided]) == []
    assert standing_of((one, two), [undecided, both[1]], "two", 0).best is two
    assert standing_of((one, two), [undecided], "two", 0).open == ()  # not asked again
