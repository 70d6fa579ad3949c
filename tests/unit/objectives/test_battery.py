"""What every objective has to satisfy; one that is registered but not listed here fails."""

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from preference.objectives import REGISTRY
from tests.unit.objectives.build import Labels, Pairs, gradients, losses, observe, random_batch, tokens_of

# Parameters to try beside the defaults.
VARIANTS = {
    "aot": [{"beta": 0.7}],
    "aot_unpaired": [{"beta": 0.7}],
    "apo_down": [{"beta": 1.0}],
    "apo_zero": [{"beta": 1.0}],
    "bco": [{"beta": 1.0}],
    "beta_dpo": [{"beta": 1.0, "filtered": 0.0}, {"filtered": 0.5, "sensitivity": 2.0}],
    "cpo": [{"normalise": False}, {"beta": 1.0, "alpha": 0.0}],
    "davidson": [{"beta": 1.0}, {"nu": 1e-6}],
    "discopop": [{"beta": 1.0}, {"beta": 1.0, "tau": 1.0}],
    "dpo": [{"beta": 1.0}, {"label_smoothing": 0.2}],
    "dpop": [{"beta": 1.0, "penalty": 1.0}],
    "exo": [{"beta": 1.0, "label_smoothing": 0.2}],
    "f_dpo": [
        {"beta": 1.0, "divergence": "forward_kl"},
        {"beta": 1.0, "divergence": "js"},
        {"divergence": "alpha"},
        {"divergence": "alpha", "alpha": 0.01},
    ],
    "hinge": [{"beta": 1.0}],
    "ipo": [{"average": False}],
    "kto": [{"beta": 1.0, "desirable_weight": 0.5, "undesirable_weight": 2.0}],
    "ld_dpo": [{"beta": 1.0, "alpha": 0.0}],
    "length_normalised": [{"beta": 0.5}],
    "nash_md": [{"beta": 1.0}],
    "nca": [{"beta": 1.0}],
    "orpo": [{"odds_weight": 2.0}],
    "r_dpo": [{"beta": 1.0, "alpha": 0.5}],
    "rao_kupper": [{"beta": 1.0}, {"nu": 1.000001}],
    "robust": [{"beta": 1.0, "label_smoothing": 0.45}],
    "rpo": [{"normalise": False, "alpha": 0.005}],
    "sft": [],
    "simpo": [{"beta": 10.0, "gamma": 0.0}],
    "slic": [{"normalise": True, "margin": 0.0}],
    "sppo": [{"beta": 0.1, "hard": True}],
    "wpo": [{"beta": 1.0}],
    "xpo": [{"alpha": 0.5}],
}
CASES = [(name, p) for name in sorted(VARIANTS) for p in ({}, *VARIANTS[name])]
every_objective = pytest.mark.parametrize(("name", "parameters"), CASES, ids=[f"{n}-{p}" for n, p in CASES])


def test_every_objective_is_in_the_battery():
    assert set(VARIANTS) == set(REGISTRY)


def sorted_whole(batch: Pairs, leaves, beta: float) -> Tensor:
    logps = batch.logps(*leaves)
    return -F.logsigmoid(beta * (logps.chosen_ratio.sort().values - logps.rejected_ratio.sort().values)).sum()


def constant_weights(batch: Pairs, leaves, beta: float) -> Tensor:
    def certainty(tokens):
        return torch.stack([v.mean() for v in (tokens.policy - tokens.collision).split(tokens.lengths.tolist())])

    weights = (certainty(batch.chosen) + certainty(batch.rejected)).exp().clamp(max=1)
    return (-weights * F.logsigmoid(beta * batch.logps(*leaves).gap)).sum()


def constant_drift(batch: Pairs, leaves, beta: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for tokens, own, wins, mine in (
        (batch.chosen, leaves[0], batch.probability, {-1: 1.0, 0: 0.5, 1: 0.0}),
        (batch.rejected, leaves[1], 1 - batch.probability, {-1: 0.0, 0: 0.5, 1: 1.0}),
    ):
        sizes = tokens.lengths.tolist()
        parts = zip(own.split(sizes), (tokens.policy - tokens.reference).split(sizes), strict=True)
        for i, (logps, drift) in enumerate(parts):
            share = mine[int(batch.from_reference[i])]
            total = total + share * (beta * (drift * logps).sum() - (wins[i] - 0.5) * logps.sum())
    return total


# Where an objective stops gradients on purpose, its gradient is that of this function, which has constants instead.
SURROGATES = {"aot_unpaired": sorted_whole, "wpo": constant_weights, "nash_md": constant_drift}


@every_objective
def test_gradient(name, parameters):
    batch = random_batch(name)
    leaves, stats = batch.leaves(), observe(name, batch, **parameters)
    if name in SURROGATES:
        beta = parameters.get("beta", 0.1)
        expected = gradients(SURROGATES[name](batch, leaves, beta), leaves)
        found = gradients(losses(name, batch, leaves, stats, **parameters).sum(), leaves)
        torch.testing.assert_close(found, expected)
        assert torch.autograd.gradcheck(lambda *x: SURROGATES[name](batch, x, beta), leaves)
    else:
        assert torch.autograd.gradcheck(lambda *x: losses(name, batch, x, stats, **parameters), leaves)


@every_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_finite_with_finite_gradients_at_extremes(name, parameters, dtype):
    """Log-ratios of +-1e4 and 0, certain and impossible responses, in every combination."""
    extremes = [(-1e4, -1.0), (-1.0, -1e4), (0.0, -1e4), (0.0, 0.0), (-1e4, -1e4)]
    grid = list(itertools.product(extremes, extremes))
    count = len(grid)
    one, two = (
        tokens_of([g[i][0] for g in grid], [g[i][1] for g in grid], [1 + i] * count, collision=-9.0) for i in (0, 1)
    )
    if REGISTRY[name].data == "labels":
        batch = Labels(one, torch.arange(count) % 2 == 0)
    else:
        number = torch.arange(count)
        batch = Pairs(one, two, torch.linspace(0, 1, count), number % 2 == 1, number % 3 - 1)
    batch = batch.to(dtype)
    leaves = batch.leaves()
    for mismatched in ([1e4], [-1e4]):
        stats = observe(name, batch, mismatched=mismatched, **parameters)
        values = losses(name, batch, leaves, stats, **parameters)
        assert values.dtype == dtype
        assert values.shape == (count,)
        assert values.isfinite().all()
        for gradient in gradients(values.sum(), leaves):
            assert gradient.isfinite().all()
            assert gradient.norm().isfinite()


@every_objective
@pytest.mark.parametrize("split", [[[0, 1, 2], [3, 4, 5]], [[5], [0, 3], [4, 1, 2]], [[0], [1], [2], [3], [4], [5]]])
def test_micro_batches_sum_to_the_whole(name, parameters, split):
    batch = random_batch(name, size=6, seed=1)
    leaves, stats = batch.leaves(), observe(name, batch, **parameters)
    whole = losses(name, batch, leaves, stats, **parameters)
    parts = [losses(name, batch, leaves, stats, which, **parameters) for which in split]
    torch.testing.assert_close(torch.cat(parts), whole[list(itertools.chain(*split))])
    found = [gradients(part.sum(), leaves) for part in parts]
    torch.testing.assert_close([sum(g) for g in zip(*found, strict=True)], gradients(whole.sum(), leaves))


@every_objective
def test_figures_are_one_detached_value_an_item(name, parameters):
    batch = random_batch(name)
    _, figures = REGISTRY[name].loss(batch.logps(*batch.leaves()), observe(name, batch, **parameters), **parameters)
    for value in figures.values():
        assert value.shape == (batch.size,)
        assert not value.requires_grad


@every_objective
def test_needs_only_what_it_declares(name, parameters):
    """nan in the reference, or in collision, must not show unless the objective asked for it."""
    objective, batch = REGISTRY[name], random_batch(name)

    def blank(tokens):
        reference = tokens.reference if objective.reference else tokens.reference * math.nan
        collision = tokens.collision if objective.collision else tokens.collision * math.nan
        return dataclasses.replace(tokens, reference=reference, collision=collision)

    if isinstance(batch, Labels):
        blanked = dataclasses.replace(batch, tokens=blank(batch.tokens))
    else:
        blanked = dataclasses.replace(batch, chosen=blank(batch.chosen), rejected=blank(batch.rejected))
    assert losses(name, blanked, **parameters).isfinite().all()


@pytest.mark.parametrize("name", sorted(n for n, o in REGISTRY.items() if o.observe))
def test_stats_are_rebuilt_from_their_fields(name):
    batch = random_batch(name)
    for stats in (REGISTRY[name].initial, observe(name, batch)):
        if stats is None:
            continue
        fields = {f.name: getattr(stats, f.name) for f in dataclasses.fields(stats)}
        assert all(isinstance(v, float | Tensor) for v in fields.values())
        again = type(stats)(**fields)
        torch.testing.assert_close(losses(name, batch, stats=observe(name, batch, stats=again)),
                                   losses(name, batch, stats=observe(name, batch, stats=stats)))  # fmt: skip


@pytest.mark.parametrize("name", sorted(n for n, o in REGISTRY.items() if o.observe))
def test_observing_is_reproducible(name):
    batch = random_batch(name)
    assert repr(observe(name, batch)) == repr(observe(name, batch))
