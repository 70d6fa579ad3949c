"""Figures from reports alone."""

import io
from dataclasses import replace

import pytest

from pipelines.look import plots
from pipelines.look.figures import TIMELINE_STEPS, frontier, frontier_figure, png, run_figures, runs_figure
from preference.reports import StageTime
from tests.unit.test_plots import EVAL, FULL


def drawn(figures):
    for figure in figures.values():
        image = io.BytesIO()
        figure.savefig(image, format="png")
        assert image.getvalue().startswith(b"\x89PNG")
    return figures


def test_everything_that_was_measured_is_drawn() -> None:
    history = plots.history_of([replace(FULL, step=s) for s in range(1, 6)], [EVAL])
    history |= {"opponents/previous/win_rate": {1: 0.5, 2: 0.6}, "opponents/previous/games": {1: 8, 2: 8}}
    stages = {
        s: (StageTime("sample", 2.0, 0, 10.0 * s, 10.0 * s + 2), StageTime("train", 3.0, 0, 10.0 * s + 2, 10.0 * s + 5))
        for s in range(1, 12)
    }
    figures = drawn(run_figures(history, stages, {0: 5, 1: 2}))
    assert set(figures) == {
        "reward_vs_kl", "win_rate", "reward", "drift", "learning", "length", "judge", "opponents", "fates", "ages",
        "timeline",
    }  # fmt: skip
    labels = [text.get_text() for text in figures["reward"].axes[0].get_legend().get_texts()]
    assert labels == ["sampled in training", "held-out probe", "held-out evaluation", "initial policy, held-out"]
    points = figures["reward_vs_kl"].axes[0].collections
    assert [len(p.get_offsets()) for p in points] == [5, 1]
    assert points[0].get_array().tolist() == [1, 2, 3, 4, 5]
    bars = [(p.get_x(), p.get_width()) for p in figures["timeline"].axes[0].patches]
    assert len(bars) == 2 * TIMELINE_STEPS  # the latest steps
    assert bars[:2] == [(0.0, 2.0), (2.0, 3.0)]
    fates = figures["fates"].axes[0].patches
    assert sum(p.get_height() for p in fates) == sum(FULL.fates.values()) * 5


def test_what_was_not_measured_is_left_out() -> None:
    assert run_figures({}) == {}
    assert "timeline" not in run_figures({}, {1: (StageTime("train", 1.0, 0),)})  # nobody noted when
    assert run_figures({"eval/win_rate": {1: float("nan")}}) == {}
    stopped = drawn(run_figures(plots.history_of([replace(FULL, probe=None)], [])))
    assert {"reward_vs_kl", "win_rate"} & set(stopped) == set()
    assert "reward" in stopped


def test_the_frontier_is_where_both_were_measured() -> None:
    history = {"objective/kl": {1: 0.5, 2: 1.0, 3: float("nan")}, "probe/score": {2: 0.7, 3: 0.8, 4: 0.9}}
    assert frontier(history, "probe") == ([2], [1.0], [0.7])
    assert frontier(history, "eval") == ([], [], [])


def test_several_runs_are_told_apart_by_what_was_swept() -> None:
    def history(scale: float) -> dict[str, dict[int, float]]:
        return {
            "objective/kl": {1: scale, 2: 2 * scale}, "probe/score": {1: 0.1, 2: 0.2},
            "eval/kl": {2: 2 * scale}, "eval/score_after": {2: 0.3},
            "eval/win_rate": {2: 0.6}, "eval/win_rate_low": {2: 0.5}, "eval/win_rate_high": {2: 0.7},
        }  # fmt: skip

    series = {"a-0": history(1), "a-1": history(2), "b-0": history(3)}
    figure = frontier_figure(series, "beta", {"a-0": "0.1", "a-1": "0.1", "b-0": "0.3"})
    legend = figure.axes[0].get_legend()
    assert [t.get_text() for t in legend.get_texts()] == ["0.1", "0.3"]
    assert legend.get_title().get_text() == "beta"
    assert sum(len(c.get_offsets()) for c in figure.axes[0].collections) == 9
    assert frontier_figure({"a": {}}, "run") is None
    rates = runs_figure(series, "eval/win_rate", "win rate", ("eval/win_rate_low", "eval/win_rate_high"))
    drawn({"frontier": figure, "rates": rates})
    assert runs_figure(series, "loss", "loss") is None


def test_a_figure_is_an_image_inside_the_page() -> None:
    figure = runs_figure({"<script>": {"loss": {1: 1.0}}}, "loss", "loss")
    assert png(figure).startswith("data:image/png;base64,iVBOR")


@pytest.mark.parametrize("steps", [1, 3])
def test_a_timeline_shows_overlap(steps: int) -> None:
    timeline = {
        s: (StageTime("sample", 5.0, 0, s, s + 5), StageTime("train", 2.0, 0, s + 1, s + 3)) for s in range(steps)
    }
    axes = run_figures({}, timeline)["timeline"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["sample", "train"]
