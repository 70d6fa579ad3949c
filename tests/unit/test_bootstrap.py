"""Intervals of paired differences: worked cases, symmetries, and how often they hold."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preference.bootstrap import Interval, paired_bootstrap

VALUES = st.lists(st.floats(-100, 100), min_size=1, max_size=40)


def test_a_constant_difference_has_no_spread():
    assert paired_bootstrap([0.25, 0.5, 1.0], [0.5, 0.75, 1.25]) == Interval(0.25, 0.25, 0.25, 3)


def test_two_items_give_the_binomial_of_their_means():
    """Differences 0 and 1: a resample's mean is 0, 1/2 or 1 with 1/4, 1/2, 1/4."""
    interval = paired_bootstrap([0, 0], [0, 1], level=0.8)
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.0, 1.0)
    assert paired_bootstrap([0, 0], [0, 1], level=0.4) == Interval(0.5, 0.5, 0.5, 2)


def test_pairing_removes_what_makes_items_easy_for_both():
    rng = np.random.default_rng(0)
    easy = rng.normal(0, 10, 200)
    first, second = easy + rng.normal(0, 0.1, 200), easy + 0.5 + rng.normal(0, 0.1, 200)
    paired = paired_bootstrap(first.tolist(), second.tolist())
    assert paired.excludes_zero
    assert paired.high - paired.low < 0.06
    shuffled = paired_bootstrap(first.tolist(), rng.permutation(second).tolist())
    assert not shuffled.excludes_zero


def test_the_interval_agrees_with_the_normal_one_on_many_items():
    rng = np.random.default_rng(1)
    difference = rng.normal(0.3, 2.0, 2000)
    interval = paired_bootstrap([0.0] * 2000, difference.tolist())
    half = 1.96 * difference.std() / math.sqrt(2000)
    assert interval.low == pytest.approx(difference.mean() - half, abs=0.01)
    assert interval.high == pytest.approx(difference.mean() + half, abs=0.01)


def test_it_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for seed in range(200):
        found = paired_bootstrap([0.0] * 60, rng.normal(0.4, 1.0, 60).tolist(), seed=seed, resamples=1000)
        hits += found.low <= 0.4 <= found.high
    assert 180 <= hits <= 199  # 95% of 200 within three standard errors


@settings(deadline=None, max_examples=40)
@given(VALUES)
def test_it_is_deterministic_holds_the_mean_and_turns_with_the_sign(values):
    zeros = [0.0] * len(values)
    interval = paired_bootstrap(zeros, values, resamples=200)
    assert interval == paired_bootstrap(zeros, values, resamples=200)
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9
    turned = paired_bootstrap(values, zeros, resamples=200)
    assert turned.mean == pytest.approx(-interval.mean)
    assert turned.low == pytest.approx(-interval.high)


@pytest.mark.parametrize(("one", "two", "words"), [
    ([], [], "non-empty"), ([1.0], [1.0, 2.0], "equally long"), ([math.nan], [1.0], "not finite"),
])  # fmt: skip
def test_bad_input_is_named(one, two, words):
    with pytest.raises(ValueError, match=words):
        paired_bootstrap(one, two)
    with pytest.raises(ValueError, match="level"):
        paired_bootstrap([1.0], [2.0], level=1.0)
