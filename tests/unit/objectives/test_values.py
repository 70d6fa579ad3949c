"""Objectives against published numbers and numbers worked by hand.

The two pairs of ``TWO``: r_chosen = .7, r_rejected = -1.1, D = 1.8, lengths 10 and 12; then -1, 2.5, -3.5, 30 and 25.
"""

from dataclasses import replace
from math import exp, expm1, log, log1p

import pytest
import torch

from preference.objectives.anchored import BcoStats, KtoStats
from preference.objectives.batchwise import BetaDpoStats
from tests.unit.objectives.build import Pairs, Tokens, labels, losses, observe, pairs

FOUR = pairs(
    [-12.3, -45, -30.2, -8], [-15.1, -40, -33.3, -9.5], [-13, -44, -31, -8.2], [-14, -42.5, -30, -9],
    [10, 30, 22, 6], [12, 25, 20, 7],
)  # fmt: skip
TWO = pairs(
    [-12.3, -45], [-15.1, -40], [-13, -44], [-14, -42.5], [10, 30], [12, 25],
    probability=[0.9, 0.6], from_reference=[1, -1],
)  # fmt: skip


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def nls(x: float) -> float:
    """-log sigmoid(x)."""
    return log1p(exp(-x))


def check(name: str, expected: list[float], batch=TWO, stats=None, **parameters) -> None:
    values = losses(name, batch, stats=stats, **parameters)
    assert values.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_torchtune_numbers():
    batch = pairs([-0.5, -10.0, -1.0], [-0.1, -30.0, -21.0], [-0.5, -10.1, -0.1], [-0.1, -20.1, -0.1])
    assert losses("dpo", batch, beta=0.1).tolist() == pytest.approx([0.693147, 0.313262, 0.126928], abs=1e-6)
    assert losses("hinge", batch, beta=0.1).tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-9)


def test_published_second_set():
    def values(name, **parameters):
        return losses(name, FOUR, beta=0.1, **parameters).tolist()

    assert values("dpo") == pytest.approx([0.607192, 0.883382, 0.509014, 0.658760], abs=1e-6)
    assert values("ipo") == pytest.approx([23.409469, 26.351111, 23.026911, 23.963356], abs=1e-6)
    assert values("ipo", average=False) == pytest.approx([10.24, 72.25, 0.81, 18.49])


def test_dpo_and_kin():
    check("dpo", [0.8 * nls(0.18) + 0.2 * nls(-0.18), 0.8 * nls(-0.35) + 0.2 * nls(0.35)], label_smoothing=0.2)
    check("robust", [(0.8 * nls(0.18) - 0.2 * nls(-0.18)) / 0.6, (0.8 * nls(-0.35) - 0.2 * nls(0.35)) / 0.6],
          label_smoothing=0.2)  # fmt: skip
    # The second pair's chosen response lost one nat.
    check("dpop", [nls(0.3 * 1.8), nls(0.3 * (-3.5 - 50 * 1))])
    check("dpop", [nls(0.5 * 1.8), nls(0.5 * (-3.5 - 2 * 1))], beta=0.5, penalty=2.0)
    check("rpo", [nls(0.18) + 12.3 / 10, nls(-0.35) + 45 / 30])
    check("rpo", [nls(0.18) + 0.005 * 12.3, nls(-0.35) + 0.005 * 45], alpha=0.005, normalise=False)


def test_wpo_weighs_by_sampled_alignment():
    # Mean log-probs a token: -1.23 and -15.1/12; -1.5 and -1.6. Aligned with log collision -1.2: -.03 and -.0583...;
    # -.3 and -.4. With -2 every one is positive and the weight is 1.
    def batch(collision):
        return pairs([-12.3, -45], [-15.1, -40], [-13, -44], [-14, -42.5], [10, 30], [12, 25], collision=collision)

    first, second = exp((-1.23 + 1.2) + (-15.1 / 12 + 1.2)), exp((-1.5 + 1.2) + (-1.6 + 1.2))
    check("wpo", [first * nls(0.18), second * nls(-0.35)], batch(-1.2))
    check("wpo", [nls(0.18), nls(-0.35)], batch(-2.0))


def test_wpo_clamps_the_product_and_not_its_factors():
    # exp(-1 + 2) exp(-4 + 2) = exp(-1), though the first factor alone is above 1.
    check("wpo", [exp(-1) * nls(0.0)], pairs([-1], [-4], [-1], [-4], collision=-2.0))


def test_length():
    check("length_normalised", [nls(5 * (0.7 / 10 + 1.1 / 12)), nls(5 * (-1 / 30 - 2.5 / 25))])
    # Chosen shorter by two tokens, then longer by five.
    check("r_dpo", [nls(0.18 + 0.01 * (10 - 12)), nls(-0.35 + 0.01 * (30 - 25))])
    # Evenly spread: of the rejected twelve tokens two are tail, of the chosen thirty five.
    check("ld_dpo", [nls(0.1 * (0.7 + 1.1 * (10 + 0.5 * 2) / 12)), nls(0.1 * (-1 * (25 + 0.5 * 5) / 30 - 2.5))])


def test_ld_dpo_finds_the_tail_token_by_token():
    chosen = Tokens(
        torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([-1.5, -1.0, -2.0]), torch.zeros(3), torch.tensor([3])
    )
    rejected = Tokens(torch.tensor([-3.0, -1.0]), torch.tensor([-1.0, -1.5]), torch.zeros(2), torch.tensor([2]))
    batch = Pairs(chosen, rejected, torch.ones(1), torch.zeros(1, dtype=torch.bool), torch.zeros(1)).to(torch.float64)
    check("ld_dpo", [nls(0.1 * ((0.5 - 1 + 0.25 * -2) - (-2 + 0.5)))], batch, alpha=0.25)


def test_curves():
    check("hinge", [1 - 0.18, 1 + 0.35])
    check("ipo", [(0.7 / 10 + 1.1 / 12 - 5) ** 2, (-1 / 30 - 2.5 / 25 - 5) ** 2])
    q, p = sigmoid(0.18), sigmoid(-0.35)
    check("exo", [q * log(q / 0.9) + (1 - q) * log((1 - q) / 0.1), p * log(p / 0.9) + (1 - p) * log((1 - p) / 0.1)],
          label_smoothing=0.1)  # fmt: skip
    m, n = sigmoid(0.18 / 0.05), sigmoid(-0.35 / 0.05)
    check("discopop", [(1 - m) * nls(0.18) + m * exp(-0.18), (1 - n) * nls(-0.35) + n * exp(0.35)])


def test_f_divergences():
    check("f_dpo", [nls(0.18), nls(-0.35)])
    check("f_dpo", [nls(0.1 * (-exp(-0.7) + exp(1.1))), nls(0.1 * (-exp(1) + exp(-2.5)))], divergence="forward_kl")

    def js(r):  # log(2u / (1 + u))
        return log(2 * exp(r) / (1 + exp(r)))

    check("f_dpo", [nls(0.1 * (js(0.7) - js(-1.1))), nls(0.1 * (js(-1) - js(2.5)))], divergence="js")

    def power(r):  # (1 - u^-a) / a
        return (1 - exp(r) ** -0.3) / 0.3

    expected = [nls(0.1 * (power(0.7) - power(-1.1))), nls(0.1 * (power(-1) - power(2.5)))]
    check("f_dpo", expected, divergence="alpha", alpha=0.3)


def test_anchored():
    check("nca", [nls(0.07) + nls(-0.07) / 2 + nls(0.11) / 2, nls(-0.1) + nls(0.1) / 2 + nls(-0.25) / 2])
    check("apo_zero", [1 - sigmoid(0.07) + sigmoid(-0.11), 1 - sigmoid(-0.1) + sigmoid(0.25)])
    check("apo_down", [sigmoid(0.07) + 1 - sigmoid(0.18), sigmoid(-0.1) + 1 - sigmoid(-0.35)])


def test_bco_runs_the_mean_of_rewards_over_steps():
    first = observe("bco", TWO)
    assert (first.mean, first.count) == (pytest.approx(0.1 * (0.7 - 1.1 - 1 + 2.5) / 4), 4)
    d = first.mean
    check("bco", [nls(0.07 - d) + nls(0.11 + d), nls(-0.1 - d) + nls(-0.25 + d)], stats=first)
    one = pairs([-1.0], [-3.0], [-2.0], [-1.0])  # ratios 1 and -2
    second = observe("bco", one, stats=first)
    assert (second.mean, second.count) == (pytest.approx(0.1 * (0.7 - 1.1 - 1 + 2.5 + 1 - 2) / 6), 6)
    assert observe("bco", one, stats=BcoStats(5.0, 2.0)).mean == pytest.approx((2 * 5.0 + 0.1 * (1 - 2)) / 4)


def test_kto():
    batch = labels([-3.0, -4.0, -5.0], [-3.5, -4.2, -4.0], [True, False, True])  # r = .5, .2, -1
    stats = observe("kto", batch, mismatched=[0.4, -0.2, 1.0])
    assert stats.z == pytest.approx(0.4)
    expected = [2 * (1 - sigmoid(0.1 * 0.1)), 3 * (1 - sigmoid(0.1 * 0.2)), 2 * (1 - sigmoid(0.1 * -1.4))]
    check("kto", expected, batch, stats, desirable_weight=2.0, undesirable_weight=3.0)


def test_kto_reference_point():
    batch = labels([-3.0], [-3.5], [True])
    assert observe("kto", batch, mismatched=[-0.4, 0.2]).z == 0
    assert observe("kto", batch, mismatched=[]).z == 0
    assert observe("kto", batch, KtoStats(0.7), mismatched=[]) == KtoStats(0.7)
    assert observe("kto", batch, KtoStats(0.7), mismatched=[0.2]).z == pytest.approx(0.2)


def test_reference_free():
    check("simpo", [nls(2 * (-1.23 + 15.1 / 12) - 1), nls(2 * (-1.5 + 1.6) - 1)])
    check("cpo", [nls(0.1 * (-12.3 + 15.1)) + 1.23, nls(0.1 * (-45 + 40)) + 1.5])
    check("cpo", [nls(0.1 * 2.8) + 0.5 * 12.3, nls(0.1 * -5) + 0.5 * 45], alpha=0.5, normalise=False)
    check("slic", [0.1 * 12.3, 1 + 45 - 40 + 0.1 * 45])
    check("slic", [3 - 2.8 + 1.23, 3 + 5 + 1.5], margin=3.0, alpha=1.0, normalise=True)

    def log_odds(mean):
        return log(exp(mean) / (1 - exp(mean)))

    check("orpo", [1.23 + 0.1 * nls(log_odds(-1.23) - log_odds(-15.1 / 12)),
                   1.5 + 0.1 * nls(log_odds(-1.5) - log_odds(-1.6))])  # fmt: skip


def test_orpo_near_certainty():
    # p = exp(-1e-4): 1 - p = -expm1(-1e-4) without cancellation.
    odds = (-1e-4 - log(-expm1(-1e-4))) - (-1.0 - log(-expm1(-1.0)))
    check("orpo", [1e-4 + 0.1 * nls(odds)], pairs([-1e-4], [-1.0], [0.0], [0.0]))


def test_sft_counts_desirable_responses():
    check("sft", [3.0, 0.0, 5.0], labels([-3.0, -4.0, -5.0], [0.0] * 3, [True, False, True]))


def test_games():
    # Soft: (P - 1/2) / beta = 40 and 10.
    check("sppo", [(0.7 - 40) ** 2 + (-1.1 + 40) ** 2, (-1 - 10) ** 2 + (2.5 + 10) ** 2], beta=0.01)
    check("sppo", [(0.7 - 50) ** 2 + (-1.1 + 50) ** 2, (-1 - 50) ** 2 + (2.5 + 50) ** 2], beta=0.01, hard=True)
    # The reference wrote the first pair's chosen response, the second's rejected one.
    check("xpo", [nls(0.18) + 0.5 * -12.3, nls(-0.35) + 0.5 * -40], alpha=0.5)
    neither = pairs([-12.3], [-15.1], [-13], [-14])
    check("xpo", [nls(0.18)], neither, alpha=0.5)
    # Own: the first pair's rejected response, which won with .1, and the second's chosen one, with .6. Even tokens:
    # the sum of ratio x log-prob over them is r logp / len.
    first, second = 0.1 * (-1.1 * -15.1) / 12 - (0.1 - 0.5) * -15.1, 0.1 * (-1 * -45) / 30 - (0.6 - 0.5) * -45
    check("nash_md", [first, second])
    both = [0.1 * 0.7 * -12.3 - 0.4 * -12.3, 0.1 * -1.1 * -15.1 - (-0.4) * -15.1]
    check("nash_md", [sum(both) / 2], pairs([-12.3], [-15.1], [-13], [-14], probability=[0.9]))


def test_ties():
    """Shares of win, loss and tie at D = 1.8 (decided) and D = -3.5 (tied), from the models' own definitions."""
    batch = replace(TWO, tied=torch.tensor([False, True]))

    def rao_kupper(d, nu):  # strengths exp(d) and 1
        win, loss = exp(d) / (exp(d) + nu), 1 / (1 + nu * exp(d))
        return win, loss, 1 - win - loss

    def davidson(d, nu):
        win, loss, tie = exp(d), 1.0, 2 * nu * exp(d / 2)
        return tuple(x / (win + loss + tie) for x in (win, loss, tie))

    for name, model, nu in (("rao_kupper", rao_kupper, 3.0), ("davidson", davidson, 1.0)):
        check(name, [-log(model(0.18, nu)[0]), -log(model(-0.35, nu)[2])], batch)
        check(name, [-log(model(1.8, 1.5)[0]), -log(model(-3.5, 1.5)[2])], batch, beta=1.0, nu=1.5)


def test_aot_sorts_the_batch():
    # Policy margins 2, -5, 1; the reference's 4, 0, -1. Ranks: -5 meets -1, 1 meets 0, 2 meets 4.
    batch = pairs([-1, -6, -2], [-3, -1, -3], [-1, -2, -4], [-5, -2, -3])
    check("aot", [nls(0.1 * (2 - 4)), nls(0.1 * (-5 + 1)), nls(0.1 * 1)], batch)
    # Ratios of chosen 0, -4, 2; of rejected 2, 1, 0. Sorted: -4 meets 0, 0 meets 1, 2 meets 2.
    check("aot_unpaired", [nls(0.1 * (0 - 1)), nls(0.1 * (-4 - 0)), nls(0.1 * (2 - 2))], batch)


def test_beta_dpo_follows_the_gap():
    first = observe("beta_dpo", TWO, filtered=0.0)
    mean, deviation = (1.8 - 3.5) / 2, (1.8 + 3.5) / 2**0.5
    assert (first.mean, first.std) == (pytest.approx(0.1 * mean), pytest.approx(0.1 * deviation))
    assert first.beta == pytest.approx(0.1 * (1 + 0.6 * (mean - 0.1 * mean)))
    check("beta_dpo", [nls(first.beta * 1.8), nls(first.beta * -3.5)], stats=first, filtered=0.0)
    second = observe("beta_dpo", TWO, stats=first, filtered=0.0)
    assert second.mean == pytest.approx(0.9 * 0.1 * mean + 0.1 * mean)
    assert second.steps == 2
    assert observe("beta_dpo", TWO, sensitivity=100.0, filtered=0.0).beta == 1e-3


def test_beta_dpo_leaves_out_the_outlier():
    # Gaps 0, .1, -.1, .05 and 50 around a running mean of 0 with deviation .1: the last weighs exp(-1e5).
    gaps = [0.0, 0.1, -0.1, 0.05, 50.0]
    batch = pairs(gaps, [0.0] * 5, [0.0] * 5, [0.0] * 5)
    before = BetaDpoStats(0.0, 0.1, 3.0, 0.1, torch.empty(0))
    stats = observe("beta_dpo", batch, before, momentum=0.999)
    assert stats.weights.tolist() == [1.25, 1.25, 1.25, 1.25, 0.0]
    kept = sum(gaps[:4]) / 4
    assert stats.beta == pytest.approx(0.1 * (1 + 0.6 * (kept - 0.001 * sum(gaps) / 5)))
    check("beta_dpo", [1.25 * nls(stats.beta * g) for g in gaps[:4]] + [0.0], batch, stats)


def test_beta_dpo_draws_by_weight():
    """One pair of twenty is kept; one weighs 1, nineteen are two deviations off and weigh exp(-2)."""
    batch = pairs([0.0] + [2.0] * 19, [0.0] * 20, [0.0] * 20, [0.0] * 20)
    kept = 0
    for step in range(2000):
        before = BetaDpoStats(0.0, 1.0, float(step), 0.1, torch.empty(0))
        weights = observe("beta_dpo", batch, before, momentum=0.999999, filtered=0.95).weights
        assert sorted(weights.tolist()) == [0.0] * 19 + [20.0]
        kept += weights[0].item() == 20.0
    assert kept / 2000 == pytest.approx(1 / (1 + 19 * exp(-2)), abs=0.03)
