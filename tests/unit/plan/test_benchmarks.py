"""What the benchmarks of overlap and of the simulator compare agrees where nothing costs anything."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.common import RESULTS, ROOT
from benchmarks.overlap import Cell, drawn_bound, grid, span
from benchmarks.scaling import line
from benchmarks.simulator import control_period, overlap_period, validate

seconds = st.floats(0.05, 3.0)


@settings(deadline=None, max_examples=60)
@given(
    seconds,
    st.floats(0, 3),
    st.floats(0, 3),
    seconds,
    st.floats(0.01, 1),
    st.integers(0, 4),
    st.sampled_from([0.0, 0.4]),
)
def test_the_simulation_follows_the_recursion_of_the_loop(sample, judge, reference, train, publish, staleness, spread):
    cell = Cell(sample, judge, reference, train, publish, staleness, spread)
    row = {name: getattr(cell, name) for name in Cell.__dataclass_fields__} | {"steps": 14}
    assert overlap_period(row, 0.0, 0.0) == pytest.approx(drawn_bound(cell, 14), rel=1e-6)
    if not spread:
        assert drawn_bound(cell, 14) == pytest.approx(cell.bound, rel=1e-6)


def test_the_grid_has_every_staleness_of_every_ratio_and_room_to_measure():
    cells = grid(range(8))
    assert len(cells) == len({(c.sample, c.judge, c.reference, c.train, c.staleness, c.spread) for c in cells}) == 64
    for staleness in (0, 1, 2, 4):
        first, last = span(staleness, 12)
        assert (last - first) % (staleness + 1) == 0 < last - first


def test_calibration_finds_what_calls_and_steps_cost():
    """Rows made with known costs and a percent of noise: the other half is predicted."""
    draw, rows = random.Random(1), []
    for cell in grid(range(8)):
        row = {name: getattr(cell, name) for name in Cell.__dataclass_fields__} | {"steps": 12}
        rows.append(row | {"measured": overlap_period(row, 0.006, 0.03) * draw.uniform(0.99, 1.01)})
    found = validate(rows[:24], overlap_period, (0.0, 0.006, 0.012), (0.0, 0.03, 0.06), ("call_s", "step_s"))
    assert (found["call_s"], found["step_s"]) == (0.006, 0.03)
    assert found["within_10_percent"] == found["validated_on"] == 12
    assert found["mean_absolute_error"] < 0.01


def test_a_driver_that_is_too_slow_bounds_the_control_plane():
    row = {"groups": {"sampler": 8, "judge": 2, "reference": 2, "trainer": 1}, "prompts_per_step": 32}
    assert control_period(row, 0.0, 0.0) == pytest.approx(1.0, rel=0.01)
    assert control_period(row, 0.05, 0.0) == pytest.approx(32 * 0.05, rel=0.02)
    assert control_period(row, 0.0, 0.01) == pytest.approx(1.32, rel=0.01)


def test_the_page_on_scaling_shows_the_committed_results():
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    rows = json.loads((RESULTS / "scaling.json").read_text())["rows"]
    assert len(rows) == 19
    for row in rows:
        assert line(row) in page, "run: python -m benchmarks.scaling, and put its lines into docs/scaling.md"
