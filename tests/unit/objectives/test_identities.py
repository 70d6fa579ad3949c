"""Relations between objectives, and what is known of them whatever the data."""

import dataclasses
import inspect
import math
import typing

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from preference.objectives import REGISTRY
from preference.objectives.batchwise import matched
from preference.objectives.terms import CAP, bounded_exp, log1mexp
from tests.unit.objectives.build import Labels, gradients, labels, losses, observe, pairs, random_batch


def at_reference(name):
    batch = random_batch(name)
    if isinstance(batch, Labels):
        return dataclasses.replace(batch, tokens=dataclasses.replace(batch.tokens, reference=batch.tokens.policy))
    sides = {s: getattr(batch, s) for s in ("chosen", "rejected")}
    return dataclasses.replace(batch, **{s: dataclasses.replace(t, reference=t.policy) for s, t in sides.items()})


def assert_all(values, expected):
    assert values.tolist() == pytest.approx([expected] * len(values))


LN2 = math.log(2)


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("dpo", {}, LN2),
        ("dpo", {"label_smoothing": 0.3}, LN2),
        ("robust", {"label_smoothing": 0.3}, LN2),
        ("dpop", {}, LN2),
        ("length_normalised", {}, LN2),
        ("ld_dpo", {}, LN2),
        ("aot_unpaired", {}, LN2),
        ("aot", {}, LN2),
        ("rpo", {"alpha": 0.0}, LN2),
        ("xpo", {"alpha": 0.0}, LN2),
        ("r_dpo", {"alpha": 0.0}, LN2),
        ("beta_dpo", {"filtered": 0.0}, LN2),
        *(("f_dpo", {"divergence": d}, LN2) for d in ("reverse_kl", "forward_kl", "js", "alpha")),
        ("bco", {}, 2 * LN2),
        ("nca", {}, 2 * LN2),
        ("hinge", {}, 1.0),
        ("apo_zero", {}, 1.0),
        ("apo_down", {}, 1.0),
        ("ipo", {}, 25.0),
        ("ipo", {"average": False}, 25.0),
        ("sppo", {"beta": 0.1, "hard": True}, 50.0),
        ("discopop", {}, (LN2 + 1) / 2),
        ("exo", {"label_smoothing": 0.1}, 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)),
    ],
)
def test_at_the_reference(name, parameters, expected):
    assert_all(losses(name, at_reference(name), **parameters), expected)


def test_kto_at_the_reference():
    batch = labels([-3.0, -4.0], [-3.0, -4.0], [True, False])
    assert_all(losses("kto", batch, stats=observe("kto", batch, mismatched=[0.0])), 0.5)


TIES = ["rao_kupper", "davidson"]


def tied_as(batch, tied):
    return dataclasses.replace(batch, tied=torch.full_like(batch.tied, tied))


@pytest.mark.parametrize("name", TIES)
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_win_loss_and_tie_are_all_there_is(name, beta):
    batch = random_batch(name)
    won, lost = (losses(name, tied_as(b, False), beta=beta) for b in (batch, batch.swapped()))
    tied = losses(name, tied_as(batch, True), beta=beta)
    assert_all((-won).exp() + (-lost).exp() + (-tied).exp(), 1.0)
    torch.testing.assert_close(losses(name, tied_as(batch.swapped(), True), beta=beta), tied)


@pytest.mark.parametrize("name", TIES)
def test_equals_tie_half_of_the_time(name):
    assert_all(losses(name, tied_as(at_reference(name), True)), LN2)
    assert_all(losses(name, tied_as(at_reference(name), False)), 2 * LN2)


@pytest.mark.parametrize("name", TIES)
def test_a_tie_pulls_the_two_together(name):
    """Whichever response the policy favours, its gradient is the one that makes it less likely."""
    batch = pairs([-4.0, -6.0], [-5.0, -5.0], [-5.0, -5.0], [-5.0, -5.0], tied=[True, True])
    leaves = batch.leaves()
    chosen, rejected = gradients(losses(name, batch, leaves, beta=1.0).sum(), leaves)
    assert chosen[0] > 0 > chosen[1]
    torch.testing.assert_close(chosen, -rejected)


@pytest.mark.parametrize(("name", "nu"), [("rao_kupper", 1 + 1e-9), ("davidson", 1e-9)])
def test_where_nothing_ties_it_is_dpo(name, nu):
    batch = random_batch(name)
    torch.testing.assert_close(losses(name, tied_as(batch, False), nu=nu), losses("dpo", batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.49])
def test_cdpo_mixes_a_pair_with_its_swap(smoothing):
    batch = random_batch("dpo")
    mixed = (1 - smoothing) * losses("dpo", batch) + smoothing * losses("dpo", batch.swapped())
    torch.testing.assert_close(losses("dpo", batch, label_smoothing=smoothing), mixed)


@pytest.mark.parametrize("name", ["dpo", "ld_dpo", "length_normalised", "f_dpo", "aot_unpaired"])
def test_logistic_losses_of_a_pair_and_its_swap_differ_by_the_logit(name):
    """-log sigmoid(x) + log sigmoid(-x) = -x, and the swapped pair's logit is -x; for AOT summed over the batch."""
    batch = random_batch(name)
    difference = losses(name, batch) - losses(name, batch.swapped())
    value = losses(name, batch)
    if name == "aot_unpaired":
        gap = batch.logps(*batch.leaves()).gap
        torch.testing.assert_close(difference.sum(), -0.1 * gap.sum())
    else:
        torch.testing.assert_close(difference, value.expm1().log())


@pytest.mark.parametrize("name", ["sppo", "nash_md"])
def test_games_do_not_care_which_response_is_called_chosen(name):
    batch = random_batch(name)
    torch.testing.assert_close(losses(name, batch), losses(name, batch.swapped()))


def test_robust_undoes_flipped_labels():
    """Its mean over a pair flipped with probability e is DPO on the true label."""
    batch, e = random_batch("robust"), 0.3
    right, flipped = (losses("robust", b, label_smoothing=e) for b in (batch, batch.swapped()))
    torch.testing.assert_close((1 - e) * right + e * flipped, losses("dpo", batch))


@pytest.mark.parametrize(
    ("name", "parameters", "weaker", "fewer"),
    [
        ("robust", {"label_smoothing": 0.0}, "dpo", {}),
        ("dpop", {"beta": 0.1, "penalty": 0.0}, "dpo", {}),
        ("rpo", {"alpha": 0.0}, "dpo", {}),
        ("xpo", {"alpha": 0.0}, "dpo", {}),
        ("r_dpo", {"alpha": 0.0}, "dpo", {}),
        ("ld_dpo", {"alpha": 1.0}, "dpo", {}),
        ("f_dpo", {}, "dpo", {}),
        ("beta_dpo", {"sensitivity": 0.0, "filtered": 0.0}, "dpo", {}),
        ("f_dpo", {"divergence": "alpha", "alpha": 1e-9}, "dpo", {}),
        ("f_dpo", {"divergence": "alpha", "alpha": 1 - 1e-9}, "f_dpo", {"divergence": "forward_kl"}),
    ],
)
def test_limits(name, parameters, weaker, fewer):
    batch = random_batch(name)
    torch.testing.assert_close(losses(name, batch, **parameters), losses(weaker, batch, **fewer), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["dpo", "robust", "dpop", "ld_dpo", "length_normalised", "f_dpo", "aot", "aot_unpaired"]
)
def test_without_a_tether_nothing_is_learnt(name):
    batch = random_batch(name)
    leaves = batch.leaves()
    values = losses(name, batch, leaves, beta=1e-9)
    assert_all(values, LN2)
    assert all(g.abs().max() < 1e-7 for g in gradients(values.sum(), leaves))


def test_nash_md_pulls_to_the_reference_and_to_winning():
    pull = pairs([-5.0], [-5.0], [-4.0], [-5.0], probability=[0.5], from_reference=[-1])
    leaves = pull.leaves()
    chosen, rejected = gradients(losses("nash_md", pull, leaves, beta=0.1).sum(), leaves)
    assert chosen.item() == pytest.approx(0.1 * -1)  # less likely than under the reference: made likelier
    assert rejected.item() == 0
    win = pairs([-5.0], [-5.0], [-5.0], [-5.0], probability=[0.9], from_reference=[-1])
    assert gradients(losses("nash_md", win, leaves).sum(), leaves)[0].item() == pytest.approx(-0.4)


def test_xpo_makes_the_references_response_less_likely():
    batch = pairs([-5.0], [-5.0], [-5.0], [-5.0], from_reference=[-1])
    leaves = batch.leaves()
    more = gradients(losses("xpo", batch, leaves, alpha=0.5).sum(), leaves)
    less = gradients(losses("xpo", batch, leaves, alpha=0.0).sum(), leaves)
    assert (more[1] - less[1]).item() == pytest.approx(0.5)
    assert (more[0] - less[0]).item() == 0


def test_r_dpo_pushes_long_chosen_responses_less():
    long, short = (pairs([-5.0], [-5.0], [-5.0], [-5.0], [n], [10]) for n in (30, 2))

    def push(batch):
        leaves = batch.leaves()
        return -gradients(losses("r_dpo", batch, leaves).sum(), leaves)[0][0].item()

    def dpo(batch):
        leaves = batch.leaves()
        return -gradients(losses("dpo", batch, leaves).sum(), leaves)[0][0].item()

    assert push(long) < dpo(long)
    assert push(short) > dpo(short)


def test_wpo_weights_carry_no_gradient():
    batch = pairs([-2.0], [-3.0], [-2.5], [-2.0], collision=-1.0)
    leaves = batch.leaves()
    weight = math.exp((-2 + 1) + (-3 + 1))
    chosen, rejected = gradients(losses("wpo", batch, leaves, beta=1.0).sum(), leaves)
    push = weight / (1 + math.exp(1.5))  # w sigmoid(-D), D = .5 + 1
    assert [chosen.item(), rejected.item()] == pytest.approx([-push, push])


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_aot_is_the_sorted_loss_of_the_whole_batch(name):
    """Value and gradient of the micro-batches' sum, against sorting inside autograd."""
    batch = random_batch(name, size=8, seed=3)
    leaves = batch.leaves()
    logps = batch.logps(*leaves)
    if name == "aot":
        ours, theirs = logps.chosen - logps.rejected, logps.chosen_ref - logps.rejected_ref
    else:
        ours, theirs = logps.chosen_ratio, logps.rejected_ratio
    whole = torch.nn.functional.softplus(-0.1 * (ours.sort().values - theirs.sort().values)).sum()
    stats = observe(name, batch)
    parts = [losses(name, batch, leaves, stats, which).sum() for which in ([6, 1], [0], [2, 3, 4], [7, 5])]
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(gradients(sum(parts), leaves), gradients(whole, leaves))


def test_matching_by_rank():
    own, others = torch.tensor([3.0, -1.0, 2.0, 2.0]), torch.tensor([10.0, 30.0, 20.0, 40.0])
    assert matched(own, others).tolist() == [40.0, 10.0, 20.0, 30.0]


def test_bounded_exp_is_smooth_where_it_changes():
    x = torch.tensor([-50.0, 0.0, CAP - 1e-6, CAP + 1e-6, 1e4], dtype=torch.float64, requires_grad=True)
    values = bounded_exp(x)
    (slope,) = torch.autograd.grad(values.sum(), x)
    assert values[:3].tolist() == pytest.approx([math.exp(-50), 1.0, math.exp(CAP - 1e-6)])
    assert values[4].item() == pytest.approx(math.exp(CAP) * (1 + 1e4 - CAP))
    assert values[3].item() == pytest.approx(math.exp(CAP), rel=1e-5)
    assert slope[2].item() == pytest.approx(slope[3].item(), rel=1e-5)


def test_log1mexp_keeps_its_digits():
    x = torch.tensor([-1e-6, -0.5, -40.0], dtype=torch.float32)
    exact = [math.log(-math.expm1(v)) for v in x.tolist()]
    assert log1mexp(x).tolist() == pytest.approx(exact, rel=1e-6, abs=1e-7)
    assert log1mexp(torch.zeros(1)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "parameter", "refused", "allowed"),
    [
        ("robust", "label_smoothing", 0.5, 0.49),
        ("dpo", "label_smoothing", 0.5, 0.0),
        ("exo", "label_smoothing", 0.0, 1e-3),
        ("dpo", "beta", 0.0, 1e-6),
        ("davidson", "nu", 0.0, 1.0),
        ("rao_kupper", "nu", 1.0, 3.0),
        ("f_dpo", "alpha", 1.0, 0.99),
        ("f_dpo", "divergence", "chi", "js"),
        ("discopop", "tau", 1.5, 1.0),
        ("ld_dpo", "alpha", 1.1, 1.0),
        ("beta_dpo", "filtered", 1.0, 0.0),
    ],
)
def test_bounds(name, parameter, refused, allowed):
    hint = typing.get_type_hints(REGISTRY[name].loss, include_extras=True)[parameter]
    TypeAdapter(hint).validate_python(allowed)
    with pytest.raises(ValidationError):
        TypeAdapter(hint).validate_python(refused)


def test_every_parameter_is_bounded_described_and_has_a_default():
    for objective in REGISTRY.values():
        hints = typing.get_type_hints(objective.loss, include_extras=True)
        for p in list(inspect.signature(objective.loss).parameters.values())[2:]:
            assert p.kind is p.KEYWORD_ONLY
            assert p.default is not p.empty
            (field,) = hints[p.name].__metadata__
            assert field.description
            TypeAdapter(hints[p.name]).validate_python(p.default)
