"""Pairs and fates: nothing wins by being first, nothing is lost silently."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preference.pairing import PairingRules, make_items
from preference.types import CandidateGroup, Fate, FinishReason, JudgedGroup, JudgeFailure, Labelled, Outcome, Rating
from tests.factories import JUDGE, candidate, judged, prompt

ONE_PAIR = ["best_vs_worst", "best_vs_random", "best_vs_mu_2sigma", "random"]
ALL = [*ONE_PAIR, "all_pairs", "rejection_sampling", "labels"]


def pairs(group, **rules):
    """(chosen, rejected) of the prompt's pairs by index, or its fate."""
    made = make_items(group, PairingRules(**rules))
    return [(p.chosen.index, p.rejected.index) for p in made.items] or made.fate


def labels(group, **rules):
    """Whether each labelled candidate is desirable, by index, or the prompt's fate."""
    made = make_items(group, PairingRules("labels", **rules))
    return {i.response.index: i.desirable for i in made.items} or made.fate


def test_best_against_worst():
    made = make_items(judged([0.1, 0.9, -0.5, 0.3]), PairingRules())
    (pair,) = made.items
    assert made.fate is Fate.TRAINED
    assert (pair.chosen.index, pair.rejected.index) == (1, 2)
    assert pair.margin == pytest.approx(1.4)
    assert not pair.tied


@pytest.mark.parametrize("strategy", ALL)
def test_equal_scores_are_a_tie_whatever_the_strategy(strategy):
    # The mean of these is off by rounding.
    assert pairs(judged([0.1] * 3), strategy=strategy) is Fate.TIED


def test_a_margin_at_the_limit_is_a_tie():
    assert pairs(judged([0.0, 0.25]), min_margin=0.25) is Fate.TIED
    assert pairs(judged([0.0, 0.26]), min_margin=0.25) == [(1, 0)]


def test_identical_candidates_make_no_pair():
    same = tuple(candidate("p", 0) for _ in range(2))
    ratings = (Rating("p/0", 1.0, JUDGE),)
    assert pairs(JudgedGroup(CandidateGroup(prompt(), same), ratings)) is Fate.IDENTICAL


def test_of_identical_candidates_one_stays():
    """0 and 3 are the same text: against 1 they make one pair, not two; whichever of them was rated counts."""
    group = judged([0.9, 0.1, 0.2])
    copy = replace(group.group.candidates[0], id="p/3", index=3)
    group = JudgedGroup(CandidateGroup(prompt(), (*group.group.candidates, copy)), group.judgements)
    rated = JudgedGroup(group.group, (*group.judgements, Rating("p/3", 0.8, JUDGE)))
    assert pairs(rated, strategy="all_pairs") == [(0, 1), (0, 2), (2, 1)]
    assert len(labels(rated)) == 3
    swapped = JudgedGroup(group.group, (Rating("p/1", 0.1, JUDGE), Rating("p/3", 0.8, JUDGE)))
    assert pairs(swapped) == [(3, 1)]


@pytest.mark.parametrize(("outcome", "fate"), [(Outcome.FAILED, Fate.JUDGE_FAILED), (Outcome.ABSTAIN, Fate.ABSTAINED)])
def test_a_judge_that_failed_decides_nothing(outcome, fate):
    group = judged([1.0, 0.0]).group
    failure = JudgeFailure(tuple(c.id for c in group.candidates), outcome, "boom", JUDGE)
    assert pairs(JudgedGroup(group, (failure,))) is fate


def test_what_nobody_has_judged_is_waiting():
    assert pairs(judged([None, None])) is Fate.WAITING
    assert pairs(judged([0.3, None])) is Fate.WAITING


def cut_off(scores, cut):
    """Candidates with ``scores``; those numbered in ``cut`` lack an end-of-sequence token."""
    finish = [FinishReason.LENGTH if i in cut else FinishReason.STOP for i in range(len(scores))]
    candidates = tuple(candidate("p", i, finish=f) for i, f in enumerate(finish))
    ratings = tuple(Rating(c.id, s, JUDGE) for c, s in zip(candidates, scores, strict=True))
    return JudgedGroup(CandidateGroup(prompt(), candidates), ratings)


def winner(group, **rules):
    found = pairs(group, **rules)
    return found[0][0] if isinstance(found, list) else found


def test_missing_eos_policies():
    group = cut_off([0.9, 0.5, 0.1], cut={0})
    assert winner(group, missing_eos="allow") == 0
    assert winner(group, missing_eos="penalise", missing_eos_penalty=1.0) == 1
    assert winner(group, missing_eos="never_chosen") == 1
    assert winner(group, missing_eos="drop") == 1
    assert winner(cut_off([0.9, 0.1], cut={0, 1}), missing_eos="never_chosen") is Fate.UNFINISHED
    assert winner(cut_off([0.9, 0.1], cut={0}), missing_eos="drop") is Fate.UNFINISHED
    # The only one that may be chosen is the worse one: no preference, and no tie either.
    assert winner(cut_off([0.9, 0.1], cut={0}), missing_eos="never_chosen", ties="keep") is Fate.UNFINISHED
    assert pairs(group, strategy="all_pairs", missing_eos="never_chosen") == [(1, 2)]
    assert labels(group, missing_eos="never_chosen") == {2: False}


def test_length_penalty_makes_the_shorter_one_win():
    short, long = candidate("p", 0, tokens=2), candidate("p", 1, tokens=12)
    group = JudgedGroup(
        CandidateGroup(prompt(), (short, long)), (Rating("p/0", 0.5, JUDGE), Rating("p/1", 1.75, JUDGE))
    )
    assert pairs(group) == [(1, 0)]
    made = make_items(group, PairingRules(length_penalty=0.25))
    assert made.items[0].chosen is short
    assert made.items[0].margin == (0.5 - 0.25 * 2) - (1.75 - 0.25 * 12)
    assert pairs(group, length_penalty=0.125) is Fate.TIED


def test_the_rejected_one_near_mu_minus_two_sigma():
    # Mean -1, variance 84 / 12 - 1 = 6: -1 - 2 sqrt 6 = -5.9 is nearer to -5 than to the worst.
    scores = [1.0, -1.0] * 5 + [-5.0, -7.0]
    assert pairs(judged(scores), strategy="best_vs_mu_2sigma") == [(0, 10)]
    assert pairs(judged(scores)) == [(0, 11)]
    assert pairs(judged([1.0, 0.0]), strategy="best_vs_mu_2sigma") == [(0, 1)]


def test_all_pairs_above_a_margin_clearest_first_and_capped():
    group = judged([0.0, 1.0, 0.4])
    assert pairs(group, strategy="all_pairs") == [(1, 0), (1, 2), (2, 0)]
    assert pairs(group, strategy="all_pairs", min_margin=0.5) == [(1, 0), (1, 2)]
    assert pairs(group, strategy="all_pairs", max_pairs=1) == [(1, 0)]
    assert pairs(group, strategy="all_pairs", min_margin=1.0) is Fate.TIED


def test_ties_are_kept_as_ties_if_asked_for():
    made = make_items(judged([0.5, 0.6, 0.9]), PairingRules("all_pairs", min_margin=0.2, ties="keep"))
    assert made.fate is Fate.TRAINED
    found = [(p.chosen.index, p.rejected.index, p.tied, p.probability) for p in made.items]
    assert found == [(2, 0, False, 1.0), (2, 1, False, 1.0), (1, 0, True, 0.5)]
    assert made.items[2].margin == pytest.approx(0.1)
    (tie,) = make_items(judged([0.5, 0.5]), PairingRules(ties="keep")).items
    assert (tie.tied, tie.margin) == (True, 0.0)


def test_labels_above_and_below_the_mean_or_a_value():
    group = judged([0.0, 0.5, 1.0, 0.9])  # mean 0.6
    assert labels(group) == {0: False, 1: False, 2: True, 3: True}
    assert labels(group, neutral_band=0.15) == {0: False, 2: True, 3: True}
    assert labels(group, threshold=0.95) == {0: False, 1: False, 2: True, 3: False}
    assert labels(group, neutral_band=1.0) is Fate.TIED
    ids = [i.id for i in make_items(group, PairingRules("labels")).items]
    assert len(set(ids)) == 4
    assert all(isinstance(i, Labelled) for i in make_items(group, PairingRules("labels")).items)


def test_one_response_can_be_compared_with_a_value_only():
    same = tuple(candidate("p", 0) for _ in range(2))
    group = JudgedGroup(CandidateGroup(prompt(), same), (Rating("p/0", 1.0, JUDGE),))
    assert labels(group, threshold=0.5) == {0: True}
    assert labels(group) is Fate.IDENTICAL


def test_rejection_sampling_accepts_by_the_optimal_policys_odds():
    """Two of three are accepted; how often the lowest is one of them follows from exp((score - best left) / beta)."""
    group = judged([1.0, 0.5, 0.0])
    times = 3000
    drawn = [pairs(group, strategy="rejection_sampling", seed=s)[0] for s in range(times)]
    lowest = sum(2 in pair for pair in drawn)
    assert lowest / times == pytest.approx(_share_of_lowest(), abs=0.03)
    assert pairs(group, strategy="rejection_sampling", rejection_beta=1e-3) == [(0, 1)]  # greedy: best two


def _share_of_lowest(beta=0.5):
    """P(the pair holds the lowest), by walking through the passes of the algorithm over all orders and draws."""
    scores = (1.0, 0.5, 0.0)

    def walk(left, taken):
        if len(taken) == 2:
            return float(2 in taken)
        best, total = max(scores[c] for c in left), 0.0
        orders = list(itertools.permutations(left))
        kept = {c: math.exp((scores[c] - best) / beta) for c in left}
        for order in orders:
            for accepted in itertools.product((True, False), repeat=len(order)):
                p = math.prod(kept[c] if a else 1 - kept[c] for c, a in zip(order, accepted, strict=True))
                if p > 0:
                    new = [c for c, a in zip(order, accepted, strict=True) if a][: 2 - len(taken)]
                    total += p * walk([c for c in left if c not in new], [*taken, *new])
        return total / len(orders)

    return walk([0, 1, 2], [])


def test_rejection_sampling_makes_as_many_pairs_as_asked_for():
    group = judged([0.1, 0.5, 0.3, 0.9, 0.7])
    for cap, count in ((None, 1), (1, 1), (2, 2), (9, 2)):
        found = pairs(group, strategy="rejection_sampling", max_pairs=cap, rejection_beta=100.0)
        assert len(found) == count
        assert len({i for pair in found for i in pair}) == 2 * count  # nobody is in two of them


scores = st.lists(st.one_of(st.none(), st.floats(-1, 1), st.sampled_from([0.0, 0.5])), min_size=2, max_size=6)


@settings(deadline=None)
@given(
    scores,
    st.sampled_from(ALL),
    st.floats(0, 0.5),
    st.sampled_from(["drop", "keep"]),
    st.sampled_from(["allow", "penalise", "never_chosen", "drop"]),
    st.sets(st.integers(0, 5)),
    st.sampled_from([None, 1, 3]),
)
def test_items_prefer_the_higher_score_by_more_than_the_margin(scores, strategy, margin, ties, eos, cut, cap):
    group = judged(scores)
    finish = [FinishReason.LENGTH if i in cut else FinishReason.STOP for i in range(len(scores))]
    cut_candidates = [replace(c, finish_reason=f) for c, f in zip(group.group.candidates, finish, strict=True)]
    group = JudgedGroup(CandidateGroup(prompt(), tuple(cut_candidates)), group.judgements)
    rules = PairingRules(strategy, margin, eos, 0.3, ties=ties, max_pairs=cap)
    made = make_items(group, rules)
    assert make_items(group, rules) == made
    assert (made.fate is Fate.TRAINED) == bool(made.items)
    penalty = 0.3 if eos == "penalise" else 0.0
    value = {
        c.index: scores[c.index] - penalty * (not c.finished) for c in cut_candidates if scores[c.index] is not None
    }
    assert len({item.id for item in made.items}) == len(made.items)
    for item in made.items:
        assert all(r.index in value for r in item.responses)
        assert eos != "drop" or all(r.finished for r in item.responses)
        if isinstance(item, Labelled):
            mean = sum(value[c.index] for c in cut_candidates if c.index in value and (eos != "drop" or c.finished))
            assert not (item.desirable and eos == "never_chosen" and not item.response.finished)
            count = sum(c.index in value and (eos != "drop" or c.finished) for c in cut_candidates)
            assert item.desirable == (value[item.response.index] > mean / count)
            continue
        difference = value[item.chosen.index] - value[item.rejected.index]
        assert eos != "never_chosen" or item.chosen.finished
        assert abs(difference) == pytest.approx(item.margin)
        assert difference > margin or (item.tied and ties == "keep" and abs(difference) <= margin)
    if strategy in ONE_PAIR or cap is not None:
        assert len(made.items) <= (cap or 1) or strategy == "labels"
