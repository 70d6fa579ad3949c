"""Losses and gradients against TRL's own code: ``tests/vectors/trl.json``, written by ``scripts/trl_vectors.py``.

Every record there says which release and function it is from and with which settings. ``CASES`` says what they are
called here, and so where definitions differ on purpose.
"""

import json
from pathlib import Path

import pytest
import torch

from preference.objectives import REGISTRY
from tests.unit.objectives.build import Labels, Pairs, Tokens, gradients, losses, observe

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "trl.json").read_text())
GIVEN = VECTORS["inputs"]
COUNT = len(GIVEN["chosen"])

CASES = {
    "dpo": ("dpo", {"beta": 0.3}),
    "cdpo": ("dpo", {"label_smoothing": 0.2}),
    "robust": ("robust", {"label_smoothing": 0.2}),
    "hinge": ("hinge", {}),
    "ipo": ("ipo", {}),
    "ipo_summed": ("ipo", {"average": False}),
    "exo": ("exo", {"label_smoothing": 0.1}),
    "nca": ("nca", {}),
    "sppo_hard": ("sppo", {"beta": 0.1, "hard": True}),  # neither is halved
    "aot": ("aot", {}),
    "aot_unpaired": ("aot_unpaired", {}),
    "apo_zero": ("apo_zero", {}),
    "apo_down": ("apo_down", {}),
    "discopop": ("discopop", {}),
    "length_normalised": ("length_normalised", {"beta": 5.0}),
    "rpo": ("rpo", {"alpha": 0.7}),
    "sft": ("sft", {}),
    "wpo": ("wpo", {}),  # all weights below 1, where TRL does not clamp
    "ld_dpo": ("ld_dpo", {"alpha": 0.3}),
    "f_dpo_forward_kl": ("f_dpo", {"divergence": "forward_kl"}),
    "f_dpo_js": ("f_dpo", {"divergence": "js"}),
    "f_dpo_alpha": ("f_dpo", {"divergence": "alpha", "alpha": 0.3}),  # 1 - TRL's
    "f_dpo_alpha_of_the_paper": ("f_dpo", {"divergence": "alpha", "alpha": 0.3}),
    "bco": ("bco", {"beta": 0.3}),
    "bco_pair": ("bco", {"beta": 0.3}),
    "kto": ("kto", {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5}),
    "cpo": ("cpo", {"alpha": 0.5}),
    "cpo_hinge": ("slic", {"margin": 1.0, "alpha": 0.1, "normalise": True}),
    "simpo": ("simpo", {"beta": 2.0, "gamma": 0.8}),  # TRL's simpo_gamma is the paper's gamma
    "orpo": ("orpo", {"odds_weight": 0.2}),
    "xpo": ("xpo", {"alpha": 0.2}),
    "nash_md": ("nash_md", {"beta": 0.3}),
}
NOT_IN_TRL = {"beta_dpo", "davidson", "dpop", "r_dpo", "rao_kupper"}


def test_every_case_and_every_objective_is_compared():
    assert set(CASES) == set(VECTORS["cases"])
    assert {name for name, _ in CASES.values()} | NOT_IN_TRL == set(REGISTRY)


def tokens(*sides: str) -> Tokens:
    responses = [r for side in sides for r in GIVEN[side]]

    def join(name: str) -> torch.Tensor:
        return torch.tensor([v for r in responses for v in r[name]], dtype=torch.float64)

    lengths = torch.tensor([len(r["policy"]) for r in responses])
    return Tokens(join("policy"), join("reference"), join("collision"), lengths)


def batch_for(name: str) -> Pairs | Labels:
    if REGISTRY[name].data == "labels":
        return Labels(tokens("chosen", "rejected"), torch.arange(2 * COUNT) < COUNT)
    probability = torch.tensor(GIVEN["probability"], dtype=torch.float64)
    from_reference = torch.tensor(GIVEN["from_reference"])
    return Pairs(tokens("chosen"), tokens("rejected"), probability, from_reference == 9, from_reference)


def evaluate(name, batch, leaves, parameters) -> torch.Tensor:
    if name == "bco":  # two steps of three pairs, as its mean runs on
        stats, found = REGISTRY[name].initial, []
        for which in (range(3), range(3, 6)):
            stats = observe(name, batch.subset(which), stats, **parameters)
            found.append(losses(name, batch, leaves, stats, which, **parameters))
        return torch.cat(found)
    mismatched = [sum(r["policy"]) - sum(r["reference"]) for r in GIVEN["mismatched"]]
    return losses(name, batch, leaves, observe(name, batch, mismatched=mismatched, **parameters), **parameters)


@pytest.mark.parametrize("case", sorted(CASES))
def test_agrees_with_trl(case):
    (name, parameters), expected = CASES[case], VECTORS["cases"][case]
    batch = batch_for(name)
    leaves = batch.leaves()
    values = evaluate(name, batch, leaves, parameters)
    if len(expected["losses"]) == 1:  # TRL's value is one for the batch: what a step minimises
        divisor = batch.tokens.lengths[batch.desirable].sum() if REGISTRY[name].normaliser == "tokens" else len(values)
        values = values.sum()[None] / divisor
    assert values.tolist() == pytest.approx(expected["losses"], rel=1e-5, abs=1e-5)
    found = torch.cat(gradients(values.sum(), leaves)).tolist()
    wanted = [g for side in ("chosen", "rejected") for response in expected["gradients"][side] for g in response]
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-5)
