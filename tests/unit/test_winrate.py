"""Win-rate statistics against worked numbers, invariances and planted effects."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preference.winrate import length_controlled_win_rate, outcomes, wilson, win_rate

OUTCOME = st.sampled_from([0.0, 0.5, 1.0])
GAMES = st.lists(st.tuples(OUTCOME, st.integers(-60, 60)), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("wins", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_wilson_worked_numbers(wins: int, n: int, low: float, high: float) -> None:
    assert wilson(wins, n) == pytest.approx((low, high), abs=1e-4)


def test_wilson_solves_the_score_equation() -> None:
    low, high = wilson(37.5, 60, z=1.5)
    for bound in (low, high):
        assert abs(37.5 / 60 - bound) / math.sqrt(bound * (1 - bound) / 60) == pytest.approx(1.5)


@given(n=st.integers(1, 500), halves=st.integers(0, 1000))
def test_wilson_is_symmetric_ordered_and_contains_the_rate(n: int, halves: int) -> None:
    wins = min(halves / 2, n)
    low, high = wilson(wins, n)
    assert 0 <= low <= wins / n <= high <= 1
    mirrored = wilson(n - wins, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)
    assert high - low > wilson(4 * wins, 4 * n)[1] - wilson(4 * wins, 4 * n)[0]


@pytest.mark.parametrize(("wins", "n"), [(0, 0), (-0.5, 3), (4, 3), (math.nan, 3)])
def test_wilson_refuses_impossible_counts(wins: float, n: int) -> None:
    with pytest.raises(ValueError, match="no interval"):
        wilson(wins, n)


def test_ties_count_half() -> None:
    result = win_rate([1.0, 0.0, 0.5, 0.5], [0.0, 1.0, 0.5, 0.4])
    assert (result.wins, result.ties, result.losses) == (2, 1, 1)
    assert result.rate == 0.625
    assert (result.low, result.high) == wilson(2.5, 4)
    assert str(result) == f"0.625 [{result.low:.3f}, {result.high:.3f}] (2 W / 1 T / 1 L of 4)"


def test_tie_margin_is_inclusive() -> None:
    assert outcomes([1.0, 1.25, -1.25], [1.0, 1.0, -1.0], tie_margin=0.25).tolist() == [0.5, 0.5, 0.5]
    assert outcomes([1.0, 1.25, -1.25], [1.0, 1.0, -1.0], tie_margin=0.2).tolist() == [0.5, 1.0, 0.0]


@given(scores=st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1), margin=st.integers(0, 4))
def test_swapping_the_sides_mirrors_the_win_rate(scores: list[tuple[int, int]], margin: int) -> None:
    after, before = [a for a, _ in scores], [b for _, b in scores]
    forward, backward = win_rate(after, before, margin), win_rate(before, after, margin)
    assert (forward.wins, forward.ties, forward.losses) == (backward.losses, backward.ties, backward.wins)
    assert forward.wins + forward.ties + forward.losses == len(scores)
    assert forward.rate == pytest.approx(1 - backward.rate)
    assert forward.low == pytest.approx(1 - backward.high, abs=1e-12)


@pytest.mark.parametrize(
    ("after", "before", "margin"),
    [([], [], 0.0), ([1.0], [1.0, 2.0], 0.0), ([math.nan], [1.0], 0.0), ([1.0], [math.inf], 0.0), ([1.0], [0.0], -1.0)],
)
def test_win_rate_refuses_bad_scores(after: list[float], before: list[float], margin: float) -> None:
    with pytest.raises(ValueError, match=r"scores|finite|tie_margin"):
        win_rate(after, before, margin)


def _planted(intercept: float, slope: float, n: int = 4000) -> tuple[list[float], list[float]]:
    """Outcomes drawn from the model itself; answers got longer by 20 tokens on average, std 20."""
    rng = np.random.default_rng(3)
    difference = rng.normal(20, 20, n)
    p = 1 / (1 + np.exp(-(intercept + slope * np.tanh(difference / difference.std()))))
    return (rng.random(n) < p).astype(float).tolist(), difference.tolist()


def test_a_pure_length_effect_is_taken_out() -> None:
    won, difference = _planted(intercept=0.0, slope=2.0)
    assert np.mean(won) > 0.68  # longer answers win, and there are more of them
    assert length_controlled_win_rate(won, difference) == pytest.approx(0.5, abs=0.03)


def test_a_quality_effect_survives() -> None:
    won, difference = _planted(intercept=1.0, slope=0.0)
    assert length_controlled_win_rate(won, difference) == pytest.approx(1 / (1 + math.exp(-1)), abs=0.03)


def test_both_effects_are_told_apart() -> None:
    won, difference = _planted(intercept=-0.5, slope=2.0)
    assert np.mean(won) > 0.55  # the raw rate has the wrong sign
    assert length_controlled_win_rate(won, difference) == pytest.approx(1 / (1 + math.exp(0.5)), abs=0.03)


def test_separation_by_length_leaves_nothing() -> None:
    difference = [-3.0, -2.0, -1.0, 1.0, 2.0, 3.0] * 20
    assert length_controlled_win_rate([float(d > 0) for d in difference], difference) == pytest.approx(0.5)


@pytest.mark.parametrize("length", [0.0, 7.0, -1e9])
def test_constant_lengths_give_the_raw_rate(length: float) -> None:
    assert length_controlled_win_rate([1.0] * 70 + [0.0] * 30, [length] * 100) == pytest.approx(0.7, abs=1e-3)


def test_all_wins_stay_below_one() -> None:
    rng = np.random.default_rng(0)
    rate = length_controlled_win_rate([1.0] * 128, rng.normal(5, 10, 128).tolist())
    assert 0.99 < rate < 1.0


@settings(deadline=None)
@given(GAMES)
def test_length_control_is_finite_and_symmetric(games: list[tuple[float, int]]) -> None:
    won, difference = [w for w, _ in games], [float(d) for _, d in games]
    rate = length_controlled_win_rate(won, difference)
    assert 0 < rate < 1
    # The other side's view: outcomes flip and lengths change sign.
    assert length_controlled_win_rate([1 - w for w in won], [-d for d in difference]) == pytest.approx(1 - rate)
    # Its unit does not matter, nor does the order of the games.
    assert length_controlled_win_rate(won[::-1], [3.5 * d for d in difference[::-1]]) == pytest.approx(rate)


@settings(deadline=None)
@given(GAMES)
def test_turning_a_loss_into_a_win_at_equal_length_never_lowers_it(games: list[tuple[float, int]]) -> None:
    won, difference = [w for w, _ in games], [float(d) for _, d in games]
    lower = length_controlled_win_rate([*won, 0.0], [*difference, 0.0])
    assert length_controlled_win_rate([*won, 1.0], [*difference, 0.0]) > lower


@pytest.mark.parametrize(
    ("won", "difference"),
    [([], []), ([1.0], [1.0, 2.0]), ([0.7], [1.0]), ([math.nan], [1.0]), ([1.0], [math.inf])],
)
def test_length_control_refuses_bad_input(won: list[float], difference: list[float]) -> None:
    with pytest.raises(ValueError, match=r"lists|outcome|finite"):
        length_controlled_win_rate(won, difference)
