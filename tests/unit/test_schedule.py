"""The arena's schedule: fewer matches than everybody against everybody, the same ranking."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preference.bradley_terry import Game, strengths
from preference.schedule import next_meetings, told_apart, two

CHUNK = 8


def run(names, strength, prompts, seed=0, fails=lambda pair, prompt: False):
    """Play to the end against planted strengths; (games, met)."""
    draw = random.Random(seed)
    games, met = [], Counter()
    for _ in range(10_000):
        meetings = next_meetings(names, games, met, prompts)
        if not meetings:
            return games, met
        assert len(set(meetings)) == len(meetings)
        for pair in meetings:
            for prompt in range(met[pair], min(met[pair] + CHUNK, prompts)):
                if not fails(pair, prompt):
                    p = 1 / (1 + math.exp(strength[pair[1]] - strength[pair[0]]))
                    games.append(Game(*pair, float(draw.random() < p)))
                met[pair] += 1
    raise AssertionError("no end")


@pytest.mark.parametrize("seed", range(5))
def test_far_apart_players_are_ranked_with_a_fraction_of_all_matches(seed):
    names = [f"p{i}" for i in range(6)]
    strength = {name: 2.5 * i for i, name in enumerate(names)}
    random.Random(seed).shuffle(names)
    games, met = run(names, strength, 100, seed)
    everybody = 100 * 6 * 5 // 2
    assert sum(met.values()) < everybody / 5
    fitted = strengths(games)
    assert sorted(names, key=fitted.of) == sorted(names, key=strength.get)


def test_equals_play_on_all_prompts_and_then_it_ends():
    names = ["a", "b", "c"]
    games, met = run(names, dict.fromkeys(names, 0.0), 40)
    assert max(met.values()) == 40
    fitted = strengths(games)
    assert max(abs(fitted.difference(a, b)[0]) for a in names for b in names) < 1.5


@settings(deadline=None, max_examples=30)
@given(
    players=st.integers(2, 6), prompts=st.integers(1, 30), seed=st.integers(0, 1000), spread=st.floats(0, 5),
    failing=st.sampled_from([0.0, 0.3, 1.0]),
)  # fmt: skip
def test_it_ends_connects_everybody_and_never_repeats_a_prompt(players, prompts, seed, spread, failing):
    names = [f"p{i}" for i in range(players)]
    draw = random.Random(seed)
    games, met = run(
        names, {n: draw.gauss(0, spread) for n in names}, prompts, seed, lambda *_: draw.random() < failing
    )
    assert max(met.values()) <= prompts
    assert sum(met.values()) <= prompts * players * (players - 1) // 2
    assert {name for pair in met for name in pair} == set(names)
    if failing == 1:
        assert games == []
        assert set(met.values()) == {prompts}  # tried to the end


def test_one_who_wins_everything_is_told_apart_where_walds_test_is_not_sure():
    games = [Game("a", "b", 1.0)] * CHUNK
    difference, error = strengths(games).difference("a", "b")
    assert difference / error < 2  # Hauck and Donner
    assert told_apart(games, "a", "b")
    assert told_apart(games, "b", "a")
    assert not told_apart(games[:3], "a", "b")
    assert not told_apart([Game("a", "b", 1.0), Game("a", "b", 0.0)] * 20, "a", "b")


def test_the_likelihood_ratio_of_two_by_hand():
    """15 of 20 won: 2 (15 log 0.75 + 5 log 0.25 - 20 log 0.5) = 5.23, which lies between 2.28 and 2.29 squared."""
    games = [Game("a", "b", float(i < 15)) for i in range(20)]
    assert told_apart(games, "a", "b", 2.28)
    assert not told_apart(games, "a", "b", 2.29)


def test_who_is_told_apart_through_others_does_not_meet():
    games = [Game("a", "b", 1.0)] * 20 + [Game("b", "c", 1.0)] * 20 + [Game("a", "c", 1.0)]
    met = {two("a", "b"): 20, two("b", "c"): 20, two("a", "c"): 1}
    assert next_meetings(["a", "b", "c"], games, met, 100) == []


def test_bad_players():
    for names in (["a"], ["a", "a"], []):
        with pytest.raises(ValueError, match="at least two players"):
            next_meetings(names, [], {}, 10)
