"""A step's loss and gradient do not depend on how its items are laid out over workers and micro-batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from configs.objectives import SECTIONS, Mix
from preference.batching import collate, mismatched_examples
from preference.objectives import REGISTRY
from preference.objectives.step import assemble, cell_loss, cell_sums, mismatched_ratios
from preference.types import Labelled, Scored
from tests.factories import candidate, prompt, scored_pair

SHAPES = [(5, 3, 6), (2, 1, 4), (9, 7, 2), (4, 4, 4), (6, 2, 9), (3, 8, 1), (7, 5, 5)]
LAYOUTS = [(1, 200), (1, 20), (2, 60), (3, 24), (4, 20)]  # workers, budget; with fillers where items do not divide


def items(kind):
    rng = np.random.default_rng(1)
    scored = [scored_pair(i, *shape) for i, shape in enumerate(SHAPES)]
    if kind == "labels":
        made = [
            Labelled(f"l{i}", prompt(f"p{i}", n), candidate(f"p{i}", 0, a), i % 3 > 0)
            for i, (n, a, _) in enumerate(SHAPES)
        ]
        scored = [Scored(item, (np.zeros(len(item.response.token_ids), np.float32),)) for item in made]
    else:
        scored[2] = replace_tie(scored[2], True)
    return [Scored(s.item, tuple(rng.normal(-2, 0.5, len(a)).astype(np.float32) for a in s.reference)) for s in scored]


def step(section, scored, ranks, budget):
    """(loss, gradient by token of each response) of a whole step, as the trainer takes it, rank after rank."""
    rng = np.random.default_rng(2)
    policy = {
        s.item.id: [
            torch.tensor(rng.normal(-2, 0.5, len(a)), dtype=torch.float64, requires_grad=True) for a in s.reference
        ]
        for s in scored
    }
    others = mismatched_examples([s.item for s in scored])
    mismatched = [tuple(np.full(len(r), -2.0, np.float32) for r in e.responses) for e in others]
    batch = collate(scored, ranks, budget, mismatched)
    cells = [c for micro in batch.cells for c in micro]

    def logps(cell):
        return torch.cat([t for i in cell.items for t in policy[scored[i].item.id]])

    terms = section.as_terms()
    parts = [part for c in cells if (part := cell_sums(c, logps(c)))]
    ratios = [
        mismatched_ratios(c, torch.full((len(c.reference),), -1.9, dtype=torch.float64))
        for micro in batch.mismatched
        for c in micro
    ]
    stats = [
        t.objective.observe(assemble(parts, ratios, t.objective.data), t.objective.initial, **t.parameters)
        if t.objective.observe
        else t.objective.initial
        for t in terms
    ]
    total = torch.zeros((), dtype=torch.float64)
    for cell in cells:
        values = logps(cell)
        collision = torch.full_like(values, -1.0).detach()
        loss, sums = cell_loss(cell, values, collision, terms, stats, batch.size)
        assert sums["loss"] == pytest.approx(float(loss))
        total = total + loss
    total.backward()
    gradients = [t.grad for s in scored for t in policy[s.item.id]]
    return float(total), torch.cat([torch.zeros(1) if g is None else g for g in gradients])


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_no_layout_changes_the_maths(name):
    section = SECTIONS[name](name=name)
    for kind in ("pairs", "labels") if REGISTRY[name].data == "labels" else ("pairs",):
        scored = items(kind)
        loss, gradient = step(section, scored, *LAYOUTS[0])
        assert np.isfinite(loss)
        for layout in LAYOUTS[1:]:
            other, others = step(section, scored, *layout)
            assert other == pytest.approx(loss, abs=1e-9), (kind, layout)
            assert torch.allclose(others, gradient, atol=1e-9), (kind, layout)


def test_a_tie_reaches_the_objective_and_counts_half_in_accuracy():
    scored = items("pairs")[1:4]
    tied = [replace_tie(s, True) for s in scored]
    section = SECTIONS["rao_kupper"](name="rao_kupper", beta=1.0)
    (lost, first), (found, second) = (step(section, s, 2, 60) for s in ([replace_tie(s, False) for s in scored], tied))
    assert found != pytest.approx(lost)
    assert not torch.allclose(first, second)
    cell = collate(tied, 1, 200).cells[0][0]
    logps = torch.zeros(len(cell.reference), dtype=torch.float64)
    _, sums = cell_loss(cell, logps, torch.zeros(0), section.as_terms(), [None], collate(tied, 1, 200).size)
    assert sums["accuracies"] == pytest.approx(1.5)


def replace_tie(scored, tied):
    return replace(scored, item=replace(scored.item, tied=tied))


def test_a_mix_is_the_weighted_sum_of_its_terms():
    dpo, sft = SECTIONS["dpo"](name="dpo", beta=0.3), SECTIONS["sft"](name="sft")
    mix = Mix(terms=(dpo, SECTIONS["sft"](name="sft", weight=0.2)))
    scored = items("pairs")
    (a, ga), (b, gb), (both, g) = (step(s, scored, 2, 60) for s in (dpo, sft, mix))
    assert both == pytest.approx(a + 0.2 * b)
    assert torch.allclose(g, ga + 0.2 * gb)
