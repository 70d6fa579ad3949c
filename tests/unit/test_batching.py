"""Packing: every token once, nothing padded, ranks never diverge, layout from lengths alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preference.batching import Example, collate, example, mismatched_examples, pack, plan, plan_cells
from preference.types import Labelled, Scored
from tests.factories import candidate, prompt, scored_pair


@st.composite
def batches(draw):
    sizes = st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(1, 9))
    shapes = draw(st.lists(sizes, min_size=1, max_size=17))
    return [scored_pair(i, *shape) for i, shape in enumerate(shapes)]


def longest(scored):
    return max(example(s.item).tokens for s in scored)


@settings(deadline=None, max_examples=150)
@given(batches(), st.integers(1, 5), st.integers(0, 60))
def test_every_item_once_and_ranks_in_step(scored, ranks, slack):
    budget = longest(scored) + slack
    batch = collate(scored, ranks, budget)
    assert all(len(micro) == ranks for micro in batch.cells)
    trained = [i for micro in batch.cells for c in micro for i, w in zip(c.items, c.weights, strict=True) if w]
    assert sorted(trained) == list(range(len(scored)))
    assert batch.tokens == sum(example(s.item).tokens for s in scored)
    assert batch.size.desirable_tokens == sum(len(s.item.chosen.token_ids) for s in scored)
    for cell in (c for micro in batch.cells for c in micro):
        assert cell.packed.tokens <= budget
        assert len(cell.packed.target) == cell.packed.lengths.sum() == len(cell.reference) == len(cell.sampler)
        expected = [t for i in cell.items for r in scored[i].item.responses for t in r.token_ids]
        assert cell.packed.target.tolist() == expected
        assert cell.desirable.tolist() == [True, False] * len(cell.items)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(1, 4), st.integers(100, 400))
def test_a_micro_step_more_is_never_taken_than_the_budget_forces_and_ranks_are_balanced(tokens, ranks, budget):
    cells = plan_cells(tokens, ranks, budget)
    loads = [[sum(tokens[i] for i in cell) for cell in micro] for micro in cells]
    assert max(max(micro) for micro in loads) <= budget
    assert all(max(micro) - min(micro) <= max(tokens) for micro in loads)
    # Half-full cells: any two of the emptiest would not fit together, or one micro-step holds everything.
    assert len(cells) <= 1 or len(cells) <= 2 * -(-sum(tokens) // (ranks * budget))


@settings(deadline=None, max_examples=100)
@given(batches(), st.integers(1, 4))
def test_split_returns_what_was_packed(scored, ranks):
    examples = [example(s.item) for s in scored]
    found = {}
    for cell in plan(examples, ranks, 64).real:
        found |= dict(zip(cell.members, cell.packed.split(cell.packed.target.astype(np.float32)), strict=True))
    assert [tuple(a.tolist() for a in found[i]) for i in range(len(examples))] == [
        tuple([float(t) for t in r] for r in e.responses) for e in examples
    ]


def test_one_pair_on_three_workers_trains_once():
    batch = collate([scored_pair(0, 4, 3, 5)], 3, 64)
    assert [c.weights.tolist() for c in batch.cells[0]] == [[1.0], [0.0], [0.0]]
    assert batch.items == 1
    assert batch.waiting == pytest.approx(2 / 3)


def test_equal_items_leave_no_rank_waiting():
    assert collate([scored_pair(i, 4, 3, 5) for i in range(6)], 3, 64).waiting == 0


def test_a_row_is_prompt_then_responses_with_positions_restarting():
    packed = pack([Example((1, 2, 3), ((4, 5), (6, 7, 8)))])
    assert packed.input_ids.tolist() == [1, 2, 3, 4, 6, 7]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 3, 4]
    assert packed.source.tolist() == [2, 3, 2, 4, 5]
    assert packed.target.tolist() == [4, 5, 6, 7, 8]
    assert packed.prompts == (3,)


def test_no_token_id_has_a_meaning():
    packed = pack([Example((0, 0), ((0, 0), (0,))), Example((0,) * 5, ((0,), (0,)))])
    assert packed.tokens == 3 + 5
    assert packed.lengths.tolist() == [2, 1, 1, 1]


def test_labelled_responses_have_a_row_each():
    items = [Labelled(f"l{i}", prompt(f"p{i}", 3), candidate(f"p{i}", 0, 2 + i), i % 2 == 0) for i in range(3)]
    scored = [Scored(i, (np.full(len(i.response.token_ids), -1.0, np.float32),)) for i in items]
    (cell,) = collate(scored, 1, 64).cells[0]
    assert cell.packed.responses_each == 1
    assert cell.desirable.tolist() == [True, False, True]
    assert collate(scored, 1, 64).size.desirable_tokens == 2 + 4


def test_a_mismatched_example_never_holds_an_answer_to_its_own_prompt():
    def ids(s):
        return s.item.prompt.token_ids

    scored = [scored_pair(i, 2 + i % 2, 3, 4) for i in range(4)]  # two prompts, twice each
    for own, other in zip(scored, mismatched_examples([s.item for s in scored]), strict=True):
        assert other.prompt == ids(own)
        assert other.responses in [example(s.item).responses for s in scored if ids(s) != ids(own)]
    assert mismatched_examples([s.item for s in scored[:1]]) == []


def test_too_long_an_example_is_refused_with_the_fix():
    with pytest.raises(ValueError, match="raise it to 30"):
        plan_cells([30], 1, 20)


def test_no_examples_no_cells():
    assert plan_cells([], 2, 100) == []


def test_an_empty_response_is_refused():
    with pytest.raises(ValueError, match="non-empty"):
        Example((1,), ((1,), ()))
