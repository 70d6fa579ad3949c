"""Figures of a run: its metrics, ages and stage times. matplotlib is imported when the first one is drawn."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.look.plots import History
from preference.reports import StageTime
from preference.types import Fate

TIMELINE_STEPS = 8  # latest steps in a timeline: more bars are too thin to see
Timeline = Mapping[int, Sequence[StageTime]]


def run_figures(
    history: History, timeline: Timeline | None = None, ages: Mapping[int, int] | None = None
) -> dict[str, Any]:
    """Every figure of a run that there is data for, by file stem; each is a matplotlib ``Figure``.

    ``timeline``: stages by step. ``ages``: trained items by age in versions.
    """
    drawn = {
        "reward_vs_kl": reward_vs_kl_figure(history),
        "win_rate": win_rate_figure(history),
        "reward": reward_figure(history),
        "drift": drift_figure(history),
        "learning": learning_figure(history),
        "length": length_figure(history),
        "judge": judge_figure(history),
        "opponents": opponents_figure(history),
        "fates": fates_figure(history),
        "ages": ages_figure(ages or {}),
        "timeline": timeline_figure(timeline or {}),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def reward_figure(history: History) -> Any:
    """Mean judge score of sampled candidates, with held-out probe and evaluations, over optimizer steps."""
    if not _any(history, "objective/scores", "probe/score", "eval/score_after"):
        return None
    figure, axes = new_figure()
    axes.plot(*_xy(history, "objective/scores"), color="C0", label="sampled in training")
    axes.plot(*_xy(history, "probe/score"), "o--", color="C1", ms=4, lw=1, label="held-out probe")
    axes.plot(*_xy(history, "eval/score_after"), "*", color="C3", ms=12, label="held-out evaluation")
    if before := history.get("eval/score_before"):
        axes.axhline(before[max(before)], color="0.6", ls=":", label="initial policy, held-out")
    return finish(figure, axes, "optimizer step", "mean judge score", "Reward over iterations")


def reward_vs_kl_figure(history: History) -> Any:
    """Held-out judge score against KL to the reference, coloured by step: over-optimisation bends it down."""
    series = {
        "probe": (*frontier(history, "probe"), "o", 25),
        "evaluation": (*frontier(history, "eval"), "*", 160),
    }
    if not any(steps for steps, _, _, _, _ in series.values()):
        return None
    figure, axes = new_figure()
    last = max(step for steps, _, _, _, _ in series.values() for step in steps)
    drawn = None
    for label, (steps, kl, score, marker, size) in series.items():
        if steps:
            drawn = axes.scatter(
                kl, score, c=steps, cmap="viridis", vmin=0, vmax=max(last, 1), marker=marker, s=size, label=label,
                edgecolors="0.3", linewidths=0.4,
            )  # fmt: skip
    figure.colorbar(drawn, ax=axes, label="optimizer step")
    return finish(figure, axes, "KL to the reference, nats per response", "mean held-out judge score", "Reward and KL")


def frontier(history: History, source: str) -> tuple[list[int], list[float], list[float]]:
    """(steps, KL, score) where both were measured on held-out answers; ``source``: ``probe`` or ``eval``."""
    names = {"probe": ("objective/kl", "probe/score"), "eval": ("eval/kl", "eval/score_after")}[source]
    kl, score = (history.get(name, {}) for name in names)
    steps = sorted(s for s in set(kl) & set(score) if math.isfinite(kl[s]) and math.isfinite(score[s]))
    return steps, [kl[s] for s in steps], [score[s] for s in steps]


def win_rate_figure(history: History) -> Any:
    """Held-out win rate against the initial policy, a line a judge, with Wilson 95% intervals."""
    if not _any(history, "eval/win_rate"):
        return None
    figure, axes = new_figure()
    for suffix, label, marker in (("", "judge trained on", "o"), ("_second", "second judge", "s")):
        steps, rates = _xy(history, f"eval/win_rate{suffix}")
        ends = [_xy(history, f"eval/win_rate_{end}{suffix}")[1] for end in ("low", "high")]
        if steps and len(steps) == len(ends[0]) == len(ends[1]):
            errors = [[max(0.0, abs(rate - end)) for rate, end in zip(rates, side, strict=True)] for side in ends]
            axes.errorbar(steps, rates, yerr=errors, marker=marker, ms=5, capsize=3, label=label)
    axes.axhline(0.5, color="0.6", ls=":", label="no better than the initial policy")
    axes.set_ylim(-0.02, 1.02)
    return finish(figure, axes, "optimizer step", "win rate", "Held-out win rate against the initial policy")


def drift_figure(history: History) -> Any:
    """Log-ratio to the reference of chosen and rejected responses: both falling is displacement of likelihood.

    Without a reference the log-probabilities themselves, which also depend on how long the responses are.
    """
    title = "Drift of chosen and rejected responses"
    if not _any(history, "log_ratio/chosen"):
        names = {"logps/chosen": "chosen", "logps/rejected": "rejected"}
        return _lines(history, names, "log-probability, nats", title)
    names = {
        "log_ratio/chosen": "chosen",
        "log_ratio/rejected": "rejected",
        "rewards/margins": "reward margin (beta x)",
    }
    return _lines(history, names, "log-ratio to the reference, nats", title, zero=True)


def learning_figure(history: History) -> Any:
    """Loss and reward accuracy in training, and on held-out items where there are any."""
    names = {
        "loss": "loss",
        "heldout/loss": "loss on held-out items",
        "rewards/accuracies": "reward accuracy",
        "heldout/accuracies": "reward accuracy on held-out items",
    }
    return _lines(history, names, "loss in nats, accuracy as a share", "Learning")


def length_figure(history: History) -> Any:
    """Response length in tokens: sampled in training, held-out before and after."""
    names = {"response/length": "sampled in training", "eval/length_after": "held-out", "eval/length_before": "initial"}
    return _lines(history, names, "tokens", "Response length")


def judge_figure(history: History) -> Any:
    """Rates that tell how far the judge can be trusted."""
    names = {
        "judge/ties": "ties",
        "judge/flips": "orders contradict each other",
        "judge/agreement": "agreement with the judge that overrules",
        "judge/kappa": "Cohen's kappa with it",
        "judge/longest": "the longer response wins",
    }
    return _lines(history, names, "share of verdicts", "Judge")


def opponents_figure(history: History) -> Any:
    """Win rate of the policy against everybody it plays with in training."""
    faced = [n for n in sorted(history) if n.startswith("opponents/") and n.endswith("/win_rate")]
    names = {n: n.removeprefix("opponents/").removesuffix("/win_rate") for n in faced}
    return _lines(history, names, "win rate, ties half", "The policy against its opponents")


def fates_figure(history: History) -> Any:
    """What became of the prompts of every step."""
    fates = [f for f in Fate if any(history.get(f"prompts/{f}", {}).values())]
    steps = sorted({step for f in fates for step in history[f"prompts/{f}"]})
    if not fates:
        return None
    figure, axes = new_figure()
    below = [0.0] * len(steps)
    for fate in fates:
        counts = [history[f"prompts/{fate}"].get(step, 0.0) for step in steps]
        axes.bar(steps, counts, bottom=below, label=fate.value.replace("_", " "), width=0.9)
        below = [b + c for b, c in zip(below, counts, strict=True)]
    finish(figure, axes, "optimizer step", "prompts", "What became of the prompts")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def ages_figure(ages: Mapping[int, int]) -> Any:
    """How many versions old the trained items were."""
    if not ages:
        return None
    figure, axes = new_figure()
    axes.bar(sorted(ages), [ages[a] for a in sorted(ages)], color="C0")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return finish(figure, axes, "age in versions", "trained items", "Age of what was trained on")


def timeline_figure(timeline: Timeline) -> Any:
    """When every stage of the latest steps worked, from its first start to its last end: overlap is what one sees."""
    steps = sorted(timeline)[-TIMELINE_STEPS:]
    bars = [(step, s) for step in steps for s in timeline[step] if math.isfinite(s.began) and math.isfinite(s.ended)]
    if not bars:
        return None
    origin = min(s.began for _, s in bars)
    names = list(dict.fromkeys(s.name for _, s in sorted(bars, key=lambda b: b[1].began)))
    figure, axes = new_figure()
    for step, s in bars:
        axes.barh(
            names.index(s.name), max(s.ended - s.began, 1e-3), left=s.began - origin, height=0.8,
            color=f"C{step % 10}", edgecolor="0.2", linewidth=0.3,
        )  # fmt: skip
    for step in steps:
        began = [s.began for number, s in bars if number == step]
        if began:
            axes.annotate(
                f"step {step}", (min(began) - origin, 1.0), xycoords=("data", "axes fraction"), fontsize="x-small",
                va="bottom",
            )  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    title = "Stages" if len(steps) == len(timeline) else f"Stages of the last {len(steps)} steps"
    return finish(figure, axes, "seconds", "", f"{title}\n")


def png(figure: Any) -> str:
    """The figure as a data URI: an image loads nothing and runs no script."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=144)
    return "data:image/png;base64," + base64.b64encode(image.getvalue()).decode()


def _lines(history: History, names: Mapping[str, str], unit: str, title: str, zero: bool = False) -> Any:
    """One line a metric; None where none was measured."""
    if not _any(history, *names):
        return None
    figure, axes = new_figure()
    for name, label in names.items():
        if name in history:
            axes.plot(*_xy(history, name), marker="o", ms=3, label=label)
    if zero:
        axes.axhline(0, color="0.6", ls=":")
    return finish(figure, axes, "optimizer step", unit, title)


def _any(history: History, *names: str) -> bool:
    return any(math.isfinite(value) for name in names for value in history.get(name, {}).values())


def _xy(history: History, name: str) -> tuple[list[int], list[float]]:
    values = history.get(name, {})
    return sorted(values), [values[step] for step in sorted(values)]


def new_figure() -> tuple[Any, Any]:
    """(figure, axes) in the size and style of all figures."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # never pyplot: no global state, no display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def finish(figure: Any, axes: Any, x: str, y: str, title: str) -> Any:
    """Name the axes, add grid and legend; returns the figure."""
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    if x == "optimizer step":
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def frontier_figure(series: Mapping[str, History], what: str, groups: Mapping[str, str] | None = None) -> Any:
    """Held-out score against KL of several runs: which buys more score for the same distance from the reference.

    Large marks are evaluations, small ones probes. ``groups``: a run's colour and its entry in the legend, which is
    called ``what``; without it every run has its own. As figure 2 of 2305.18290.
    """
    groups = groups or {name: name for name in series}
    colours = {group: f"C{i % 10}" for i, group in enumerate(dict.fromkeys(groups.values()))}
    figure, axes = new_figure()
    labelled: set[str] = set()
    for name, history in series.items():
        group = groups[name]
        for source, marker, size in (("probe", ".", 18), ("eval", "*", 150)):
            steps, kl, score = frontier(history, source)
            if steps:
                label = None if group in labelled else group
                labelled.add(group)
                axes.scatter(
                    kl, score, s=size, marker=marker, color=colours[group], label=label,
                    edgecolors="0.2" if marker == "*" else "none", linewidths=0.4,
                )  # fmt: skip
        steps, kl, score = frontier(history, "eval")
        axes.plot(kl, score, color=colours[group], lw=0.8, alpha=0.6)
    if not labelled:
        return None
    finish(figure, axes, "KL to the reference, nats per response", "mean held-out judge score", "Reward and KL")
    axes.legend(title=what, fontsize="small")
    return figure


def runs_figure(series: Mapping[str, History], metric: str, label: str, interval: tuple[str, str] | None = None) -> Any:
    """One metric of several runs over steps, with its interval if its ends are metrics, too."""
    if not any(_any(history, metric) for history in series.values()):
        return None
    figure, axes = new_figure()
    for name, history in series.items():
        steps, values = _xy(history, metric)
        if not steps:
            continue
        if interval is None:
            axes.plot(steps, values, marker="o", ms=3, label=name)
            continue
        ends = [[history[end][step] for step in steps] for end in interval]
        errors = [[max(0.0, abs(v - e)) for v, e in zip(values, side, strict=True)] for side in ends]
        axes.errorbar(steps, values, yerr=errors, marker="o", ms=4, capsize=3, label=name)
    return finish(figure, axes, "optimizer step", label, label[0].upper() + label[1:])
