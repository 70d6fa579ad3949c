"""Packing: every token once, masks from lengths, ranks never diverge, the maths does not depend on the layout."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preference.batching import Example, collate, pack_rows, plan, plan_cells
from tests.factories import scored_pair


@st.composite
def batches(draw):
    sizes = st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(1, 9))
    shapes = draw(st.lists(sizes, min_size=1, max_size=17))
    return [scored_pair(i, *shape) for i, shape in enumerate(shapes)]


@settings(deadline=None, max_examples=150)
@given(batches(), st.integers(1, 5), st.integers(0, 60))
def test_every_pair_once_and_ranks_in_step(scored, ranks, slack):
    longest = max(len(s.pair.prompt.token_ids) + len(s.chosen_ref) + len(s.rejected_ref) - 2 for s in scored)
    batch = collate(scored, ranks, longest + slack)
    assert all(len(micro) == ranks for micro in batch.cells)
    trained = [i for micro in batch.cells for c in micro for i, w in zip(c.pairs, c.weights, strict=True) if w]
    assert sorted(trained) == list(range(len(scored)))
    for micro in batch.cells:
        for cell in micro:
            assert cell.rows.size <= longest + slack
            assert len(cell.rows.target) == cell.rows.lengths.sum() == len(cell.reference) == len(cell.sampler)
            expected = [t for i in cell.pairs for c in both(scored[i]) for t in c.token_ids]
            assert cell.rows.target.tolist() == expected


def both(s):
    return s.pair.chosen, s.pair.rejected


@settings(deadline=None, max_examples=100)
@given(batches(), st.integers(1, 4))
def test_unpack_returns_what_was_packed(scored, ranks):
    examples = [Example(s.pair.prompt.token_ids, tuple(c.token_ids for c in both(s))) for s in scored]
    layout = plan(examples, ranks, 64)
    targets = [layout.cells[m][r].target.astype(np.float32) for m, r in layout.real()]
    found = layout.unpack(targets)
    assert [tuple(a.tolist() for a in one) for one in found] == [
        tuple([float(t) for t in r] for r in e.responses) for e in examples
    ]


def test_one_pair_on_three_workers_trains_once():
    batch = collate([scored_pair(0, 4, 3, 5)], 3, 64)
    assert [c.weights.tolist() for c in batch.cells[0]] == [[1.0], [0.0], [0.0]]
    assert batch.pairs == 1
    assert batch.padding == pytest.approx(2 / 3)


def test_row_is_prompt_then_responses_with_positions_restarting():
    rows = pack_rows([Example((1, 2, 3), ((4, 5), (6, 7, 8)))], [[0]])
    assert rows.input_ids.tolist() == [[1, 2, 3, 4, 6, 7]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 3, 3, 4]]
    assert rows.branch.tolist() == [[0, 0, 0, 1, 2, 2]]
    assert rows.source.tolist() == [2, 3, 2, 4, 5]
    assert rows.target.tolist() == [4, 5, 6, 7, 8]


def test_pad_id_has_no_meaning():
    rows = pack_rows([Example((0, 0), ((0, 0), (0,))), Example((0,) * 5, ((0,), (0,)))], [[0], [1]])
    assert rows.group.tolist() == [[0, 0, 0, -1, -1], [0, 0, 0, 0, 0]]


def test_too_long_an_example_is_refused_with_the_fix():
    with pytest.raises(ValueError, match="raise it to 30"):
        plan_cells([30], 1, 20)


def test_no_examples_no_cells():
    assert plan_cells([], 2, 100) == []


def test_empty_response_is_refused():
    with pytest.raises(ValueError, match="non-empty"):
        Example((1,), ((1,), ()))
