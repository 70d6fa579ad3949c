"""The order of prompts: every epoch has them all, and no step has one twice."""

from hypothesis import given
from hypothesis import strategies as st

from pipelines.prompts import PromptSet
from tests.factories import prompt


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 3))
def test_no_step_has_a_prompt_twice_and_none_is_forgotten(count, size, seed):
    known = PromptSet({f"p{i}": prompt(f"p{i}") for i in range(count)}, ())
    steps = [[p.id for p in known.batch(step, size, seed)] for step in range(1, 3 * count + 1)]
    assert all(len(set(batch)) == len(batch) == min(size, count) for batch in steps)
    two_epochs = -(-2 * count // size)
    for start in range(len(steps) - two_epochs):
        assert {name for batch in steps[start : start + two_epochs] for name in batch} == set(known.prompts)
    assert steps == [[p.id for p in known.batch(step, size, seed)] for step in range(1, 3 * count + 1)]
