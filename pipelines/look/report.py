"""``rondo report``: a run on one self-contained HTML page, from its directory alone, under way, stopped or finished."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pipelines.data.rules import DataError
from pipelines.data.runs import finished_run, record_of
from pipelines.ledger.record import RunRecord
from pipelines.look.figures import run_figures
from pipelines.look.page import Example, Grid, Section, page, pictures, readable, write_page
from pipelines.tracking.events import EVENTS, Evaluated, read_events
from pipelines.tracking.history import Attempt, Record
from pipelines.wording import at_kl, duration, judge_row, over_optimisation, plain
from preference.reports import EvalReport
from preference.types import Version


def report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the page to ``out`` (RUN/report.html) and return where it is. Raises DataError naming what is missing."""
    out = out or run_dir / "report.html"
    write_page(out, render(run_dir), "--html")
    return out


def load(run_dir: Path, tables: bool = False) -> tuple[RunRecord, Record]:
    """What a run is and what it measured; raises DataError where it is no run or measured nothing."""
    record = record_of(run_dir)
    if not (run_dir / EVENTS).is_file():
        raise DataError(f"{run_dir} has no {EVENTS}: nothing was measured yet, or by another version of Rondo")
    return record, Record.of(read_events(run_dir), tables)


def render(run_dir: Path) -> str:
    """The page."""
    record, measured = load(run_dir, tables=True)
    evaluation = measured.last_evaluation
    judged = evaluation_of(evaluation) if evaluation is not None else None
    return page(
        "report.html",
        name=plain(run_dir.resolve().name),
        state=_state(run_dir, record, measured),
        said=plain(over_optimisation(judged)) if judged is not None and judged.judges else "",
        results=_results(measured, judged),
        pictures=pictures(run_figures(measured.history, measured.timeline, measured.ages)),
        sections=[s for s in (_time(measured), _data(measured), _judges(measured), _code(measured)) if s.rows],
        attempts=_attempts(measured.attempts.values()),
        examples=_examples(measured.tables),
        configuration=_configuration(record.fields),
    )


def evaluation_of(event: Evaluated) -> EvalReport:
    """The evaluation as it was reported, without its examples."""
    m = event.metrics
    return EvalReport(
        step=event.step,
        version=Version.parse(event.version),
        judges=event.judges,
        length_before=m.get("eval/length_before", math.nan),
        length_after=m.get("eval/length_after", math.nan),
        kl=m.get("eval/kl", math.nan),
        examples=(),
        seconds=0.0,
        prompts=event.prompts,
    )


def _state(run_dir: Path, record: RunRecord, measured: Record) -> str:
    last = max(measured.attempts.values(), key=lambda a: a.number, default=None)
    planned = last.tags.get("run.steps", "") if last else ""
    reached = f"{measured.steps}{f' of {planned}' if planned else ''} steps"
    if record.finished:
        said = f"Finished: {reached}, weights v{measured.version}."
    else:
        try:
            finished_run(run_dir)
            said = f"Stopped after {reached}: `rondo resume RUN` goes on."
        except DataError:
            said = f"Under way: {reached} so far."
    return f"{said} Configuration {record.config_hash}."


def _results(measured: Record, evaluation: EvalReport | None) -> Grid:
    if evaluation is not None:
        kl = at_kl(evaluation)
        length = f"{evaluation.length_before:.1f} to {evaluation.length_after:.1f} tokens"
        title = f"Held-out answers at step {evaluation.step} against the initial policy's, {kl}, length {length}"
        header = ("judge", "win rate [Wilson 95%]", "won / tied / lost", "at equal length", "mean score")
        return Grid(title, header, tuple(tuple(map(plain, judge_row(j))) for j in evaluation.judges))
    loss = measured.history.get("heldout/loss", {})
    rows = tuple((str(step), f"{loss[step]:.4f}", _accuracy(measured, step)) for step in sorted(loss))
    return Grid("Held-out items", ("step", "loss", "reward accuracy [Wilson 95%]"), rows)


def _accuracy(measured: Record, step: int) -> str:
    names = ("heldout/accuracies", "heldout/accuracies_low", "heldout/accuracies_high")
    values = [measured.history.get(n, {}).get(step) for n in names]
    if any(v is None for v in values):
        return "-"
    rate, low, high = values
    return f"{rate:.3f} [{low:.3f}, {high:.3f}]"


def _time(measured: Record) -> Section:
    spent: dict[str, float] = {}
    for name, values in measured.history.items():
        if name.startswith("time/") and name != "time/iteration":
            spent[name.removeprefix("time/")] = sum(values.values())
    stages = sorted(spent.items(), key=lambda s: -s[1])
    rows = [(stage, duration(seconds)) for stage, seconds in stages]
    rows.append(("all iterations", duration(measured.seconds)))
    return Section("Where the time went (stages may overlap)", tuple(rows) if measured.steps else ())


def _data(measured: Record) -> Section:
    rows = [
        (f"{f.context}: {plain(f.name)}", f"{'' if f.rows is None else f'{f.rows} rows, '}{f.digest}")
        for f in measured.files.values()
    ]
    return Section("Data", tuple(rows))


def _judges(measured: Record) -> Section:
    return Section("Judges, by the hash of what they go by", tuple((plain(n), h) for n, h in measured.judges.items()))


def _code(measured: Record) -> Section:
    if not measured.attempts:
        return Section("Code", ())
    tags = measured.attempts[max(measured.attempts)].tags
    names = [n for n in tags if n.startswith(("git.", "package.", "hardware.", "cluster."))]
    return Section("Code and machine of the last attempt", tuple((n, plain(tags[n])) for n in sorted(names)))


def _attempts(attempts: Iterable[Attempt]) -> Grid:
    rows = []
    for a in sorted(attempts, key=lambda a: a.number):
        cluster = ", ".join(f"{n.removeprefix('cluster.')} {v}" for n, v in a.tags.items() if n.startswith("cluster."))
        ended = _when(a.ended_ms) if a.ended_ms is not None else "-"
        rows.append((str(a.number), _when(a.began_ms), ended, a.status.lower() or "no end was noted", cluster))
    return Grid("Attempts", ("attempt", "began (UTC)", "ended", "how", "cluster"), tuple(rows))


def _when(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _examples(tables: Mapping[str, str]) -> tuple[Example, ...]:
    """Of the last evaluation."""
    paths = sorted(p for p in tables if p.startswith("samples/eval-"))
    if not paths:
        return ()
    table = json.loads(tables[paths[-1]])
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    return tuple(
        Example(
            f"{readable(r['prompt'])} ({r['score_before']:+.2f} to {r['score_after']:+.2f})",
            readable(r["before"]),
            readable(r["after"]),
        )
        for r in rows
    )


def _configuration(fields: Mapping[str, str]) -> list[Section]:
    sections: dict[str, list[tuple[str, str]]] = {}
    for key, value in fields.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, []).append((plain(name or section), plain(value)))
    return [Section(plain(name), tuple(rows)) for name, rows in sections.items()]
