"""Pairs between two sides: the policy's responses with its opponents', the data's over what plays against it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preference.batching import collate
from preference.pairing import PairingRules, make_items, next_matches
from preference.summaries import ages, sample_metrics, sample_rows
from preference.types import (
    CandidateGroup,
    Fate,
    FinishReason,
    JudgedGroup,
    Outcome,
    Rating,
    Scored,
    Verdict,
    Version,
    Written,
)
from tests.factories import JUDGE, candidate, prompt

VERSUS = PairingRules("versus")
SPIN = PairingRules("spin")
DATA = Written("d", "p", (70, 71), "of the data")


def field(*players, **overrides):
    return tuple(replace(candidate("p", i, **overrides), player=player) for i, player in enumerate(players))


def rated(responses, scores):
    ratings = tuple(Rating(c.id, s, JUDGE) for c, s in zip(responses, scores, strict=True) if s is not None)
    return JudgedGroup(CandidateGroup(prompt(), tuple(responses)), ratings)


def made(group, rules=VERSUS):
    found = make_items(group, rules)
    return [(p.chosen.id, p.rejected.id) for p in found.items] or found.fate


def test_the_clearest_pair_of_the_two_sides():
    players = field("policy", "policy", "previous", "reference")
    assert made(rated(players, [0.0, 1.0, 0.4, 5.0])) == [("p/3", "p/0")]
    assert made(rated(players, [0.0, 9.0, 0.4, 5.0])) == [("p/1", "p/2")]
    several = replace(VERSUS, max_pairs=3)
    assert made(rated(players, [0.0, 9.0, 0.4, 5.0]), several) == [("p/1", "p/2"), ("p/3", "p/0"), ("p/1", "p/3")]
    assert made(rated(players, [1.0] * 4)) is Fate.TIED


PLAYERS = st.lists(st.sampled_from(["policy", "previous", "league"]), min_size=2, max_size=6)


@given(PLAYERS, st.lists(st.integers(-3, 3), min_size=6, max_size=6), st.integers(1, 9))
def test_versus_never_joins_two_of_one_side_and_finds_the_widest_margin(players, scores, most):
    group = rated(field(*players), scores[: len(players)])
    found = make_items(group, replace(VERSUS, max_pairs=most))
    across = [
        abs(a - b)
        for (one, a), (two, b) in itertools.combinations(zip(players, scores, strict=False), 2)
        if (one == "policy") != (two == "policy")
    ]
    assert all((p.chosen.player == "policy") != (p.rejected.player == "policy") for p in found.items)
    assert [p.margin for p in found.items] == sorted((m for m in across if m), reverse=True)[:most]
    if not across:
        assert found.fate is Fate.UNOPPOSED
    elif not any(across):
        assert found.fate is Fate.TIED


def test_a_judge_compares_across_the_sides_alone():
    players = field("policy", "policy", "previous", "reference")
    group = JudgedGroup(CandidateGroup(prompt(), players), ())
    asked = next_matches(group, VERSUS)
    met = {frozenset((m.first.player, m.second.player)) for m in asked}
    assert len(asked) == 4
    assert met == {frozenset(("policy", "previous")), frozenset(("policy", "reference"))}
    better = {"p/0": 0, "p/1": 3, "p/2": 1, "p/3": 2}
    said = tuple(
        Verdict(*m.ids, Outcome.FIRST if better[m.first.id] > better[m.second.id] else Outcome.SECOND, p, JUDGE)
        for m in asked
        for p in [0.9 if better[m.first.id] > better[m.second.id] else 0.1]
    )
    judged = replace(group, judgements=said)
    assert next_matches(judged, VERSUS) == ()
    (pair,) = make_items(judged, VERSUS).items
    assert (pair.chosen.player == "policy") != (pair.rejected.player == "policy")
    assert pair.probability == pytest.approx(0.9)


def test_a_response_that_may_not_win_leaves_its_place_to_the_next_pair():
    cut = replace(candidate("p", 1, finish=FinishReason.LENGTH), player="previous")
    players = (*field("policy"), cut, replace(candidate("p", 2), player="league"))
    group = rated(players, [1.0, 9.0, 0.0])
    assert made(group, replace(VERSUS, missing_eos="never_chosen")) == [("p/0", "p/2")]
    assert made(group, replace(VERSUS, missing_eos="drop")) == [("p/0", "p/2")]
    assert made(rated(players[:2], [1.0, 9.0]), replace(VERSUS, missing_eos="drop")) is Fate.UNFINISHED


def test_without_the_other_side_there_is_no_pair_and_that_is_said():
    assert made(rated(field("policy", "policy"), [0.0, 1.0])) is Fate.UNOPPOSED
    assert made(rated(field("policy", "policy"), [0.0, 1.0]), SPIN) is Fate.UNOPPOSED
    one = field("policy")[0]
    same = replace(one, id="p/copy", player="reference")
    assert made(rated((one, same), [1.0, None])) is Fate.IDENTICAL
    echo = Written("d", "p", one.token_ids, "echo")
    assert made(JudgedGroup(CandidateGroup(prompt(), (one, echo)), ()), SPIN) is Fate.IDENTICAL


def test_spin_prefers_the_data_to_the_previous_iterate_and_asks_nobody():
    group = JudgedGroup(CandidateGroup(prompt(), (*field("policy", "previous", "previous"), DATA)), ())
    assert next_matches(group, SPIN) == ()
    found = make_items(group, SPIN)
    (pair,) = found.items
    assert found.fate is Fate.TRAINED
    assert (pair.chosen, pair.rejected.player, pair.margin, pair.probability) == (DATA, "previous", 1.0, 1.0)
    rejected = {make_items(group, replace(SPIN, seed=s)).items[0].rejected.id for s in range(20)}
    assert rejected == {"p/1", "p/2"}
    alone = JudgedGroup(CandidateGroup(prompt(), (*field("policy"), DATA)), ())
    assert made(alone, SPIN) == [("d", "p/0")]


def test_only_the_policys_own_count_as_the_policys():
    """Ages, the sampler's log-probs, and the figures of what was sampled."""
    old, new = Version(0, 1), Version(0, 5)
    mine = candidate("p", 0, tokens=2, version=new)
    theirs = replace(candidate("p", 1, tokens=4, version=old), player="reference", logprobs=(-7.0,) * 4)
    group = rated((mine, theirs), [0.25, 1.0])
    (pair,) = make_items(group, VERSUS).items
    scored = Scored(pair, tuple(np.full(len(r.token_ids), -1.0, np.float32) for r in pair.responses))
    assert ages([scored], new) == (0,)
    (cell,) = collate([scored], 1, 100).cells[0]
    assert np.isnan(cell.sampler[:4]).all()
    assert cell.sampler[4:].tolist() == [-1.0, -1.0]
    assert cell.from_reference.tolist() == [1]  # it wrote the chosen one
    metrics = sample_metrics([group])
    assert (metrics.score, metrics.length, metrics.entropy) == (0.25, 2.0, 2.0)
    assert [r.version for r in sample_rows([group], [scored])] == ["0.5", "reference 0.1"]
