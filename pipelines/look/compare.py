"""``rondo compare``: what differs between runs, how they ended, and whether the difference is more than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.data.rules import DataError
from pipelines.ledger.record import RunRecord
from pipelines.look.figures import frontier_figure, runs_figure
from pipelines.look.page import Grid, page, pictures, write_page
from pipelines.look.report import evaluation_of, load
from pipelines.tracking.events import Evaluated
from pipelines.tracking.history import Record
from pipelines.wording import plain
from preference.bootstrap import Interval, paired_bootstrap
from preference.winrate import outcomes


@dataclass(frozen=True, slots=True)
class Compared:
    """One of the runs."""

    name: str
    record: RunRecord
    measured: Record


@dataclass(frozen=True, slots=True)
class Difference:
    """A run against the first one, on the held-out prompts that both answered, by one judge."""

    run: str
    judge: str
    win_rate: Interval
    """Of win rates against the initial policy, ties half."""
    score: Interval
    """Of the judge's scores."""


def compare(directories: Sequence[Path], console: Console, html: Path | None = None) -> None:
    """Show the runs beside each other; also as a page if ``html`` is given. Raises DataError."""
    runs = load_runs(directories)
    found = tables(runs)
    for grid in found:
        show(grid, console)
    for note in notes(runs):
        console.print(Text(note), soft_wrap=True)
    if html is not None:
        write_page(html, render(runs), "--html")
        console.print(Text(f"written to {html}"))


def load_runs(directories: Sequence[Path]) -> tuple[Compared, ...]:
    """The runs, by names that tell them apart."""
    if len(directories) < 2:
        raise DataError("give two runs or more to compare")
    paths = [d.resolve() for d in directories]
    if len(set(paths)) < len(paths):
        raise DataError(f"a run is given twice: {', '.join(map(str, directories))}")
    short = len({p.name for p in paths}) == len(paths)
    return tuple(Compared(plain(p.name if short else str(p)), *load(p)) for p in paths)


def render(runs: Sequence[Compared], title: str = "") -> str:
    """The page."""
    series = {run.name: run.measured.history for run in runs}
    figures = {
        "reward against KL": frontier_figure(series, "run"),
        "win rate": runs_figure(
            series, "eval/win_rate", "held-out win rate", ("eval/win_rate_low", "eval/win_rate_high")
        ),
        "held-out score": runs_figure(series, "probe/score", "mean judge score of held-out samples"),
        "KL": runs_figure(series, "objective/kl", "KL to the reference, nats per response"),
        "loss": runs_figure(series, "loss", "loss"),
    }
    drawn = pictures({name: figure for name, figure in figures.items() if figure is not None})
    title = title or f"Runs: {', '.join(r.name for r in runs)}"
    return page("compare.html", title=title, notes=notes(runs), tables=tables(runs), pictures=drawn)


def show(grid: Grid, console: Console) -> None:
    table = Table(title=Text(plain(grid.title)), title_justify="left")
    for name in grid.header:
        table.add_column(Text(plain(name)), overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    console.print(table)


def tables(runs: Sequence[Compared]) -> list[Grid]:
    """Configuration, final metrics, and paired differences; those that there is nothing for are left out."""
    found = [_fields(runs), _metrics(runs), _differences(runs)]
    return [grid for grid in found if grid.rows]


def notes(runs: Sequence[Compared]) -> list[str]:
    """What the tables do not say."""
    said = []
    digests = {r.measured.last_evaluation.heldout for r in runs if r.measured.last_evaluation is not None}
    if len(digests) > 1:
        said.append(
            "The runs were evaluated on different held-out prompts: those runs are not compared prompt by prompt."
        )
    if any(r.measured.last_evaluation is not None for r in runs):
        said.append(
            "Intervals of single runs are Wilson's, those of differences are paired bootstraps over held-out prompts "
            "(95%). Both say how much the choice of prompts matters, and nothing about other seeds."
        )
    unfinished = [r.name for r in runs if not r.record.finished]
    if unfinished:
        said.append(f"Not finished: {', '.join(unfinished)}.")
    return said


def _fields(runs: Sequence[Compared]) -> Grid:
    names = sorted({name for run in runs for name in run.record.fields} - {"run.name"})
    rows = []
    for name in names:
        values = [run.record.fields.get(name, "-") for run in runs]
        if len(set(values)) > 1:
            rows.append((plain(name), *map(plain, values)))
    return Grid("Configuration, where it differs", ("field", *(r.name for r in runs)), tuple(rows))


def _metrics(runs: Sequence[Compared]) -> Grid:
    columns = [_final(run.measured) for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = tuple((name, *(column.get(name, "-") for column in columns)) for name in names)
    return Grid("How they ended", ("", *(r.name for r in runs)), rows)


def _final(measured: Record) -> dict[str, str]:
    """The last evaluation, or the last held-out loss; and what it took."""
    values = {"steps": str(measured.steps)}
    if (event := measured.last_evaluation) is not None:
        evaluation = evaluation_of(event)
        for judged in evaluation.judges:
            rate, name = judged.win_rate, plain(judged.judge)
            values[f"win rate by {name}"] = f"{rate.rate:.3f} [{rate.low:.3f}, {rate.high:.3f}]"
            values[f"at equal length by {name}"] = f"{judged.length_controlled:.3f}"
            values[f"score by {name}"] = f"{judged.score_before:+.3f} -> {judged.score_after:+.3f}"
        if not math.isnan(evaluation.kl):
            values["KL to the reference, nats"] = f"{evaluation.kl:.2f}"
        values["length, tokens"] = f"{evaluation.length_before:.1f} -> {evaluation.length_after:.1f}"
    shown = {
        "held-out loss": "heldout/loss",
        "held-out reward accuracy": "heldout/accuracies",
        "reward margin in training": "rewards/margins",
        "items trained, last step": "pairs/trained",
    }
    for label, name in shown.items():
        if (value := measured.final(name)) is not None:
            values[label] = f"{value:.4g}"
    if times := measured.history.get("time/iteration"):
        values["seconds of an iteration, median"] = f"{median(times.values()):.1f}"
    return values


def _differences(runs: Sequence[Compared]) -> Grid:
    found = differences(runs)
    rows = tuple(
        (d.run, plain(d.judge), _shown(d.win_rate), _shown(d.score), str(d.win_rate.n))
        for d in found
    )  # fmt: skip
    header = ("run", "judge", "win rate [95%]", "score [95%]", "prompts")
    return Grid(f"Difference to {runs[0].name}, prompt by prompt (* excludes zero)", header, rows)


def differences(runs: Sequence[Compared]) -> list[Difference]:
    """Every run against the first, by every judge that both have, where held-out prompts are the same."""
    base = runs[0].measured.last_evaluation
    found = []
    for run in runs[1:]:
        event = run.measured.last_evaluation
        if base is None or event is None or base.heldout != event.heldout:
            continue
        shared = {j.judge for j in event.judges}
        for judge in (j.judge for j in base.judges):
            if judge in shared:
                one, two = _measured(base, judge), _measured(event, judge)
                ids = sorted(set(one) & set(two))
                if ids:
                    won, scores = (paired_bootstrap([one[i][k] for i in ids], [two[i][k] for i in ids]) for k in (0, 1))
                    found.append(Difference(run.name, judge, won, scores))
    return found


def _measured(event: Evaluated, judge: str) -> Mapping[str, tuple[float, float]]:
    """(won, score) by prompt, where the judge did not fail."""
    number = [j.judge for j in event.judges].index(judge)
    known = [p for p in event.prompts if math.isfinite(p.before[number]) and math.isfinite(p.after[number])]
    if not known:
        return {}
    won = outcomes([p.after[number] for p in known], [p.before[number] for p in known]).tolist()
    return {p.prompt_id: (w, p.after[number]) for p, w in zip(known, won, strict=True)}


def _shown(interval: Interval) -> str:
    star = " *" if interval.excludes_zero else ""
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]{star}"
