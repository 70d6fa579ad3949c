"""Verdicts from distributions over verdict tokens: worked numbers, symmetries, and a planted position bias."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from preference.types import Outcome
from preference.verdicts import Decision, NoVerdict, VerdictRules, compare, mean_grade

RULES = VerdictRules(tie_band=0.05, min_mass=0.1)
STRICT = VerdictRules(tie_band=0.0, min_mass=0.0)
MIRRORED = {Outcome.FIRST: Outcome.SECOND, Outcome.SECOND: Outcome.FIRST, Outcome.TIE: Outcome.TIE}
answers = st.lists(st.floats(0, 0.3), min_size=3, max_size=3).filter(lambda a: sum(a) > 1e-6)


@pytest.mark.parametrize(
    ("forward", "backward", "expected"),
    [
        # (0.6 + 0.1 / 2) / 0.8 = 0.8125 and 1 - (0.1 + 0.2) / 0.8 = 0.625: mean 0.71875
        ((0.6, 0.1, 0.1), (0.1, 0.3, 0.4), Decision(Outcome.FIRST, 0.71875, False)),
        # Both orders prefer what is shown first: 0.9 and 1 - 0.9
        ((0.9, 0.1), (0.9, 0.1), Decision(Outcome.TIE, 0.5, True)),
        # The stronger of two contradicting orders wins, and the contradiction is kept: (0.9 + 0.3) / 2
        ((0.9, 0.1), (0.7, 0.3), Decision(Outcome.FIRST, 0.6, True)),
        # A tie against a side is no contradiction: (0.5 + 0.1) / 2
        ((0.0, 0.0, 1.0), (0.9, 0.1, 0.0), Decision(Outcome.SECOND, 0.3, False)),
        # All mass on the tie's token
        ((0.0, 0.0, 0.5), (0.0, 0.0, 0.4), Decision(Outcome.TIE, 0.5, False)),
        # Exactly on the edge of the band is a tie: (0.5625 + 0.5375) / 2
        ((0.55, 0.45), (0.45, 0.55), Decision(Outcome.TIE, 0.55, False)),
    ],
)
def test_worked_numbers(forward, backward, expected):
    # The edge is one in exact arithmetic: let rounding not decide it.
    found = compare(forward, backward, VerdictRules(RULES.tie_band + 1e-12, RULES.min_mass))
    assert found.outcome is expected.outcome
    assert found.order_flipped is expected.order_flipped
    assert found.probability == pytest.approx(expected.probability, abs=1e-12)


@given(forward=answers, backward=answers, band=st.floats(0, 0.49))
def test_exchanging_the_responses_mirrors_the_decision(forward, backward, band):
    rules = VerdictRules(band, 0.0)
    one, other = compare(forward, backward, rules), compare(backward, forward, rules)
    assert other.outcome is MIRRORED[one.outcome]
    assert other.probability == pytest.approx(1 - one.probability, abs=1e-15)
    assert other.order_flipped is one.order_flipped


@given(forward=answers, backward=answers, scale=st.floats(0.2, 1.0))
def test_only_shares_count_above_the_least_mass(forward, backward, scale):
    full = compare(forward, backward, STRICT)
    scaled = compare([p * scale for p in forward], backward, STRICT)
    assert scaled.probability == pytest.approx(full.probability, abs=1e-9)


@given(shown=answers)
def test_a_judge_that_sees_only_positions_says_tie(shown):
    decision = compare(shown, shown, STRICT)
    assert decision.outcome is Outcome.TIE
    assert decision.probability == 0.5


@given(mass=st.floats(0, 0.0999))
def test_too_little_mass_in_either_order_is_no_verdict(mass):
    weak, sound = (mass, 0.0, 0.0), (0.5, 0.1, 0.1)
    for forward, backward in ((weak, sound), (sound, weak)):
        with pytest.raises(NoVerdict, match=r"min_mass = 0\.1"):
            compare(forward, backward, RULES)


@pytest.mark.parametrize("bad", [(math.nan, 0.5, 0.1), (math.inf, 0.1, 0.1), (-0.1, 0.5, 0.5), (0.0, 0.0, 0.0)])
def test_nonsense_is_no_verdict(bad):
    with pytest.raises(NoVerdict):
        compare(bad, (0.5, 0.4, 0.1), STRICT)
    with pytest.raises(NoVerdict):
        mean_grade(bad, (1, 2, 3), STRICT)


def test_grade_is_the_mean_of_the_renormalised_distribution():
    # (0.1 x 1 + 0.3 x 4 + 0.1 x 5) / 0.5
    assert mean_grade((0.1, 0, 0, 0.3, 0.1), (1, 2, 3, 4, 5), RULES) == pytest.approx(3.6)
    with pytest.raises(NoVerdict):
        mean_grade((0.01, 0, 0, 0.03, 0.01), (1, 2, 3, 4, 5), RULES)
    with pytest.raises(ValueError, match="2 probabilities for 3 grades"):
        mean_grade((0.1, 0.9), (1, 2, 3), RULES)


@given(shares=st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_a_grade_lies_between_the_lowest_and_the_highest(shares):
    assume(sum(shares) > 1e-6)
    assert 1 - 1e-9 <= mean_grade(shares, (1, 2, 3, 4, 5), STRICT) <= 5 + 1e-9


@pytest.mark.parametrize("bias", [-4.0, -1.0, 0.5, 2.0])
def test_a_planted_position_bias_is_removed(bias):
    """P(shown first is better) = sigmoid(q_first - q_second + bias): 10,000 pairs, qualities seen through noise."""
    rng = np.random.default_rng(0)
    quality = rng.normal(size=(10_000, 2))
    seen = quality[:, 0] - quality[:, 1] + rng.normal(size=10_000)  # the judge is wrong at times without any bias, too
    truth = quality[:, 0] > quality[:, 1]

    def agreement(b: float, *, both: bool) -> float:
        right = 0
        for d, first_is_better in zip(seen, truth, strict=True):
            forward, backward = _sigmoid(d + b), _sigmoid(-d + b)
            shown = (backward, 1 - backward) if both else (1 - forward, forward)
            outcome = compare((forward, 1 - forward), shown, STRICT).outcome
            right += outcome is (Outcome.FIRST if first_is_better else Outcome.SECOND)
        return right / len(seen)

    unbiased = agreement(0.0, both=True)
    assert 0.7 < unbiased < 0.9
    assert abs(agreement(bias, both=True) - unbiased) <= 0.01
    assert agreement(bias, both=False) < unbiased - 0.01  # one order alone does not remove it


@pytest.mark.parametrize("bias", [0.0, 3.0])
def test_flips_show_the_bias(bias):
    gaps = np.random.default_rng(1).normal(size=5_000)
    flips = 0
    for d in gaps:
        forward, backward = _sigmoid(d + bias), _sigmoid(-d + bias)
        flips += compare((forward, 1 - forward), (backward, 1 - backward), STRICT).order_flipped
    # |d| < |bias| is decided by position alone.
    assert flips == np.sum(np.abs(gaps) < bias)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
