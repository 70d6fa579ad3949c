"""Earlier versions as opponents: which weights a step means, who is in the league, who plays, and who won."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preference.league import INITIAL, Result, Tally, as_of, draw, members, results, since, snapshots
from preference.summaries import faced
from preference.types import (
    DATA,
    CandidateGroup,
    JudgedGroup,
    JudgeFailure,
    Outcome,
    Rating,
    Verdict,
    Version,
    Written,
)
from tests.factories import JUDGE, candidate, prompt

V = {step: Version(0, step) for step in range(1, 20)}
STEPS = st.sets(st.integers(1, 19)).map(lambda steps: [V[s] for s in sorted(steps)])


def test_the_weights_after_a_step_are_those_published_by_then():
    published = [V[2], V[3], V[7]]
    assert [as_of(published, s).step for s in range(-1, 9)] == [0, 0, 0, 2, 3, 3, 3, 3, 7, 7]
    assert since(published, 3) == {V[3], V[7]}
    assert since(published, 1) == {INITIAL, V[2], V[3], V[7]}


def test_the_first_version_of_every_few_steps_enters_the_league():
    published = [V[s] for s in (1, 2, 3, 5, 6, 9, 12)]
    assert [v.step for v in snapshots(published, 4)] == [0, 5, 9, 12]  # nothing was published at 4 and 8
    assert [v.step for v in members(published, 4, 2, before=12)] == [5, 9]
    assert [v.step for v in members(published, 4, 9, before=6)] == [0, 5]
    assert members(published, 4, 2, before=0) == (INITIAL,)  # at first there is nobody but oneself


@given(STEPS, st.integers(1, 6), st.integers(1, 5), st.integers(0, 20))
def test_the_league_is_small_old_and_lasting(published, every, size, before):
    league = members(published, every, size, before)
    assert 1 <= len(league) <= size
    assert list(league) == sorted(league)
    assert all(v == INITIAL or v.step < before for v in league)
    newer = [v for v in published if v.step >= before]
    assert members([v for v in published if v not in newer], every, size, before) == league
    # What is older than its oldest member may be gone without changing it, unless it is looked for itself.
    assert members([v for v in published if v >= league[0]], every, size, before)[-len(league) :] == league


def drawn(how, against, count=4000):
    league = (INITIAL, V[4], V[8])
    found = Counter(draw(league, how, against, 7, 1, prompt(f"p{i}")).step for i in range(count))
    return [found[v.step] / count for v in league]


def test_draws_are_uniform_or_follow_the_win_rates():
    against = {4: Tally(8, 8.0), 8: Tally(8, 0.0)}  # always beaten, never beaten; nobody has met the initial policy
    assert drawn("uniform", against) == pytest.approx([1 / 3] * 3, abs=0.03)
    # 1 - (points + 1) / (games + 2): 1/2, 1/10, 9/10
    assert drawn("win_rate", against) == pytest.approx([5 / 15, 1 / 15, 9 / 15], abs=0.03)


def test_a_draw_is_repeated_and_differs_between_prompts_and_steps():
    league = tuple(V.values())
    once = [draw(league, "uniform", {}, 0, step, prompt(f"p{i}")) for step in (1, 2) for i in range(40)]
    again = [draw(league, "uniform", {}, 0, step, prompt(f"p{i}")) for step in (1, 2) for i in range(40)]
    assert once == again
    assert once[:40] != once[40:]
    assert len(set(once)) > 10


def of(player, number, version=INITIAL):
    made = candidate("p", number, version=version)
    return replace(made, id=f"{player}/{number}", player=player)


def test_ratings_meet_each_of_the_other_sides():
    mine = [of("policy", 0), of("policy", 1)]
    theirs = [of("previous", 2, V[3]), of("league", 3, V[4]), Written("data/4", "p", (9,), "d")]
    rated = {"policy/0": 1.0, "policy/1": 0.2, "previous/2": 0.2, "league/3": 0.5, "data/4": 2.0}
    ratings = tuple(Rating(i, value, JUDGE) for i, value in rated.items())
    found = list(results([JudgedGroup(CandidateGroup(prompt(), (*mine, *theirs)), ratings)]))
    assert Counter(found) == Counter(
        [
            Result("previous", V[3], 1.0), Result("previous", V[3], 0.5),
            Result("league", V[4], 1.0), Result("league", V[4], 0.0),
            Result(DATA, None, 0.0), Result(DATA, None, 0.0),
        ]
    )  # fmt: skip
    rows = {f.player: (f.games, f.win_rate) for f in faced(found)}
    assert rows == {"data": (2, 0.0), "league": (2, 0.5), "league/0.4": (2, 0.5), "previous": (2, 0.75)}


def test_verdicts_count_from_either_side_and_failures_not_at_all():
    a, b, c = of("policy", 0), of("reference", 1), of("reference", 2)
    said = (
        Verdict(a.id, b.id, Outcome.FIRST, 0.9, JUDGE),
        Verdict(c.id, a.id, Outcome.FIRST, 0.7, JUDGE),
        Verdict(b.id, c.id, Outcome.FIRST, 0.9, JUDGE),  # two of the same side
        JudgeFailure((a.id, c.id), Outcome.FAILED, "boom", JUDGE),
        Verdict(a.id, c.id, Outcome.TIE, 0.52, JUDGE),
    )
    found = list(results([JudgedGroup(CandidateGroup(prompt(), (a, b, c)), said)]))
    assert [r.score for r in found] == [1.0, 0.0, 0.5]
