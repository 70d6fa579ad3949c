"""Likelihood displacement is noticed once, and not where there is none."""

from dataclasses import replace

from preference.displacement import Displacement
from tests.factories import TRAINED


def test_likelihood_displacement_is_said_once():
    watch = Displacement()
    said = [watch.update(i, replace(TRAINED, log_ratio_chosen=-0.5 * i, rewards_margins=0.1 * i)) for i in range(1, 21)]
    assert [i for i, text in enumerate(said, start=1) if text] == [10]
    assert "4.0 nats less likely" in said[9]
    assert "dpop" in said[9]
    quiet = Displacement()
    assert not any(
        quiet.update(i, replace(TRAINED, log_ratio_chosen=0.5 * i, rewards_margins=0.1 * i)) for i in range(1, 21)
    )
