"""Pairs from a judge that compares: verdicts have the last word, Bradley-Terry speaks where they did not meet."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preference.pairing import CERTAIN, PairingRules, log_odds, make_items, next_matches, scores
from preference.types import (
    CandidateGroup,
    Fate,
    FinishReason,
    JudgedGroup,
    JudgeFailure,
    Labelled,
    Outcome,
    Verdict,
)
from tests.factories import JUDGE, candidate, prompt


def group(n, cut=()):
    finish = [FinishReason.LENGTH if i in cut else FinishReason.STOP for i in range(n)]
    return JudgedGroup(CandidateGroup(prompt(), tuple(candidate("p", i, finish=f) for i, f in enumerate(finish))), ())


def verdict(first, second, p):
    outcome = Outcome.TIE if p == 0.5 else Outcome.FIRST if p > 0.5 else Outcome.SECOND
    return Verdict(first.id, second.id, outcome, p, JUDGE)


def play(group, rules, p):
    """Ask until nothing is to be asked; ``p(i, j)``: P(candidate i beats j), or an outcome that is none."""

    def judge(match):
        answer = p(match.first.index, match.second.index)
        return (
            JudgeFailure(match.ids, answer, "", JUDGE)
            if isinstance(answer, Outcome)
            else verdict(match.first, match.second, answer)
        )

    while matches := next_matches(group, rules):
        assert make_items(group, rules).fate in (Fate.WAITING, Fate.JUDGE_FAILED, Fate.ABSTAINED)
        group = replace(group, judgements=(*group.judgements, *(judge(m) for m in matches)))
    return group


def found(group, rules):
    made = make_items(group, rules)
    return [(i.chosen.index, i.rejected.index) for i in made.items] or made.fate


def bradley_terry(quality):
    return lambda i, j: 1 / (1 + math.exp(quality[j] - quality[i]))


STRATEGIES = ["best_vs_worst", "best_vs_random", "random", "best_vs_mu_2sigma", "all_pairs", "rejection_sampling"]


@settings(deadline=None)
@given(st.integers(2, 7).flatmap(lambda n: st.permutations(range(n))), st.sampled_from(STRATEGIES), st.integers(0, 3),
       st.sampled_from(["knockout", "round_robin"]))  # fmt: skip
def test_pairs_are_right_for_a_judge_that_is(quality, strategy, seed, tournament):
    rules = PairingRules(strategy, seed=seed, tournament=tournament)
    judged = play(group(len(quality)), rules, bradley_terry(quality))
    made = make_items(judged, rules)
    assert made.fate is Fate.TRAINED
    for pair in made.items:
        assert quality[pair.chosen.index] > quality[pair.rejected.index]
        assert pair.margin > 0
        assert pair.probability == pytest.approx(1 / (1 + math.exp(-pair.margin)), abs=1e-5)
    n = len(quality)
    if strategy == "best_vs_worst":
        assert found(judged, rules) == [(quality.index(n - 1), quality.index(0))]
    if strategy == "all_pairs":
        assert len(made.items) == n * (n - 1) / 2
    calls = {"best_vs_worst": math.ceil(3 * n / 2) - 2, "best_vs_random": n - 1, "random": 1}
    every = n * (n - 1) // 2
    assert len(judged.judgements) <= (calls.get(strategy, every) if tournament == "knockout" else every)


def test_a_verdict_on_the_two_themselves_has_the_last_word():
    rules = PairingRules("all_pairs")
    said = {(0, 1): 0.7, (1, 2): 0.9, (0, 2): 0.6}
    judged = play(group(3), rules, lambda i, j: said[i, j] if i < j else 1 - said[j, i])
    made = make_items(judged, rules)
    told = {(p.chosen.index, p.rejected.index): p for p in made.items}
    assert told[0, 2].probability == pytest.approx(0.6)
    assert told[0, 2].margin == pytest.approx(math.log(0.6 / 0.4))
    assert set(told) == {(0, 1), (1, 2), (0, 2)}


def test_whom_no_verdict_joins_is_judged_through_others():
    """Two steps of log-odds add up: 0.8 and 0.8 are log 4 each, log 16 together, less what the prior takes."""
    a, b, c = group(3).group.candidates
    judged = replace(
        group(3),
        judgements=(verdict(a, b, 0.8), verdict(b, c, 0.8), JudgeFailure((a.id, c.id), Outcome.FAILED, "", JUDGE)),
    )
    made = make_items(judged, PairingRules("all_pairs"))
    margins = {(p.chosen.index, p.rejected.index): p.margin for p in made.items}
    assert margins[0, 1] == pytest.approx(math.log(4))
    assert math.log(16) * 0.85 < margins[0, 2] < math.log(16)


def test_certain_answers_have_finite_margins():
    rules = PairingRules()
    (pair,) = make_items(play(group(2), rules, lambda i, j: float(i < j)), rules).items
    assert pair.margin == pytest.approx(math.log((1 - CERTAIN) / CERTAIN))
    assert log_odds(0.5) == 0
    assert pair.probability == 1.0
    (pair,) = make_items(play(group(8), rules, lambda i, j: float(i < j)), rules).items
    assert (pair.chosen.index, pair.rejected.index) == (0, 7)
    assert math.isfinite(pair.margin)


def test_ties_are_counted_or_kept():
    rules, keep = PairingRules(), PairingRules(ties="keep")
    for n in (2, 4, 5):
        judged = play(group(n), rules, lambda i, j: 0.5)
        assert found(judged, rules) is Fate.TIED
        (pair,) = make_items(judged, keep).items
        assert (pair.tied, pair.margin, pair.probability) == (True, 0.0, 0.5)
    banded = replace(play(group(2), rules, lambda i, j: 0.5), judgements=(
        Verdict("p/0", "p/1", Outcome.TIE, 0.53, JUDGE),))  # fmt: skip
    assert found(banded, rules) is Fate.TIED  # the judge's own band, whatever the number
    assert found(play(group(2), rules, lambda i, j: 0.6), PairingRules(min_margin=0.5)) is Fate.TIED


def test_a_judge_that_contradicts_itself_makes_no_pair():
    rules = PairingRules(ties="keep")
    fates = set()
    for seed in range(20):
        rules = PairingRules(ties="keep", seed=seed)
        judged = play(group(3), rules, lambda i, j: 0.9 if (j - i) % 3 == 1 else 0.1)
        fates.add(make_items(judged, rules).fate)
        assert not any(p.tied for p in make_items(judged, rules).items)
    assert fates == {Fate.TIED}


@pytest.mark.parametrize(("outcome", "fate"), [(Outcome.FAILED, Fate.JUDGE_FAILED), (Outcome.ABSTAIN, Fate.ABSTAINED)])
@pytest.mark.parametrize("strategy", [*STRATEGIES, "labels"])
@pytest.mark.parametrize("n", [2, 5])
def test_failures_are_no_verdicts(strategy, n, outcome, fate):
    rules = PairingRules(strategy, ties="drop" if strategy == "labels" else "keep")
    judged = play(group(n), rules, lambda i, j: outcome)
    assert make_items(judged, rules).items == ()
    assert make_items(judged, rules).fate is fate


def test_an_open_tournament_is_waiting():
    rules = PairingRules()
    judged = group(4)
    first = next_matches(judged, rules)
    judged = replace(judged, judgements=(verdict(first[0].first, first[0].second, 0.9),))
    assert make_items(judged, rules).fate is Fate.WAITING
    assert len(next_matches(judged, rules)) == 1


def test_who_was_cut_off_is_never_chosen_and_a_penalty_moves_the_odds():
    rules = PairingRules(missing_eos="never_chosen")
    judged = play(group(4, cut={0}), rules, bradley_terry([3, 2, 1, 0]))
    assert found(judged, rules) == [(1, 3)]
    judged = play(group(2, cut={0}), rules, bradley_terry([3, 2]))
    assert found(judged, rules) is Fate.UNFINISHED
    assert next_matches(group(2, cut={0, 1}), rules) == ()
    assert make_items(group(2, cut={0, 1}), rules).fate is Fate.UNFINISHED
    rules = PairingRules(missing_eos="drop")
    assert found(play(group(4, cut={0}), rules, bradley_terry([3, 2, 1, 0])), rules) == [(1, 3)]
    rules = PairingRules(missing_eos="penalise", missing_eos_penalty=5.0)
    judged = play(group(2, cut={0}), rules, bradley_terry([3, 2]))
    (pair,) = make_items(judged, rules).items
    assert pair.chosen.index == 1
    assert pair.margin == pytest.approx(5 - (3 - 2))
    assert pair.probability == pytest.approx(1 / (1 + math.exp(-4)))


def test_a_penalty_changes_who_wins_the_tournament():
    """Quality goes along with length; the penalty outweighs it."""
    candidates = tuple(candidate("p", i, tokens=2 + 3 * i, first_token=10 + 20 * i) for i in range(5))
    judged = JudgedGroup(CandidateGroup(prompt(), candidates), ())
    quality = bradley_terry([0, 1, 2, 3, 4])
    assert found(play(judged, PairingRules(), quality), PairingRules()) == [(4, 0)]
    rules = PairingRules(length_penalty=1.0)  # 3 a candidate against 1
    assert found(play(judged, rules, quality), rules) == [(0, 4)]


def test_labels_from_a_round_robin():
    rules = PairingRules("labels")
    judged = play(group(4), rules, bradley_terry([3, 2, -2, -3]))
    assert len(judged.judgements) == 6
    made = make_items(judged, rules)
    assert {i.response.index: i.desirable for i in made.items} == {0: True, 1: True, 2: False, 3: False}
    assert all(isinstance(i, Labelled) for i in made.items)
    assert make_items(judged, replace(rules, neutral_band=2.4)).items == tuple(
        i for i in made.items if i.response.index in (0, 3)
    )


def test_identical_candidates_are_never_asked_about():
    same = replace(candidate("p", 0), id="again")
    judged = JudgedGroup(CandidateGroup(prompt(), (candidate("p", 0), same)), ())
    assert next_matches(judged, PairingRules()) == ()
    assert make_items(judged, PairingRules()).fate is Fate.IDENTICAL


def test_scores_of_both_kinds_of_judge():
    a, b, c = group(3).group.candidates
    judged = replace(group(3), judgements=(verdict(a, b, 0.9),))
    known = scores(judged)
    assert set(known) == {a.id, b.id}
    assert known[a.id] == pytest.approx(-known[b.id])
    assert scores(group(3)) == {}
    assert c.id not in known
