"""``rondo inspect``: diagnostics of preference data as tables on the terminal, and as one self-contained HTML page.

Whatever is shown was written by models or strangers: control characters never reach the terminal, and the page escapes
all text, runs no script and loads nothing.
"""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.data.rules import DataRules
from pipelines.look.inspect_figures import figures
from pipelines.look.inspect_sources import read_corpus
from pipelines.look.page import Example, Section, page, pictures, readable, write_page
from pipelines.tracking import TrackingError, log_diagnosis
from pipelines.wording import plain
from preference.diagnostics import Diagnosis, diagnose, scalars
from preference.findings import findings, percent
from preference.texts import same_but_for_formatting

EXAMPLES = 5


def inspect(
    path: Path, console: Console, html: Path | None = None, rules: DataRules | None = None, track: bool = False
) -> Diagnosis:
    """Read, measure and show a run or a file; write the page to ``html`` if that is given. Raises DataError.

    With ``track`` a run's numbers and figures go to its MLflow run; without MLflow that is a warning.
    """
    diagnosis = diagnose(read_corpus(path, rules))
    show(diagnosis, console)
    if html is not None:
        write_page(html, render(diagnosis), "--html")
        console.print(Text(f"written to {html}"))
    if track and path.is_dir():
        try:
            log_diagnosis(path, scalars(diagnosis), figures(diagnosis))
        except TrackingError as error:
            console.print(Text(f"not in MLflow: {plain(str(error))}", style="yellow"))
    return diagnosis


def show(diagnosis: Diagnosis, console: Console) -> None:
    """The tables and warnings."""
    for section in sections(diagnosis):
        table = Table(title=Text(plain(section.title)), show_header=False, title_justify="left", min_width=60)
        table.add_column(overflow="fold")
        table.add_column(justify="right", overflow="fold")
        for name, value in section.rows:
            table.add_row(Text(plain(name)), Text(plain(value)))
        console.print(table)
    for line in findings(diagnosis):
        console.print(Text(f"warning: {plain(line)}", style="yellow"))


def render(diagnosis: Diagnosis) -> str:
    """The page: figures are inside it, as are the styles."""
    return page(
        "inspect.html",
        source=diagnosis.corpus.source,
        sections=sections(diagnosis),
        findings=findings(diagnosis),
        pictures=pictures(figures(diagnosis)),
        examples=examples(diagnosis),
    )


def sections(d: Diagnosis) -> tuple[Section, ...]:
    """Everything that was measured, in words."""
    return tuple(s for s in (_coverage(d), _length(d), _texts(d), _margins(d), _judge(d), *_agreement(d)) if s.rows)


def _coverage(d: Diagnosis) -> Section:
    corpus = d.corpus
    total = sum(corpus.fates.values())
    rows = [("prompts", str(corpus.prompts)), ("pairs", str(len(corpus.pairs)))]
    if corpus.labels:
        wanted = sum(g.desirable for g in corpus.labels)
        rows.append(("labelled responses", f"{wanted} desirable, {len(corpus.labels) - wanted} undesirable"))
    rows += [
        (f"{corpus.counted}: {fate.replace('_', ' ')}", f"{n} ({n / total:.0%})") for fate, n in corpus.fates.items()
    ]
    rows.append((f"{corpus.counted} in all", str(total)))
    rows += [(f"prompts with {items} item{'s'[: items != 1]}", str(n)) for items, n in d.per_prompt.items()]
    return Section(f"Coverage of {corpus.source}", tuple(rows))


def _length(d: Diagnosis) -> Section:
    length, unit = d.length, d.corpus.unit
    rows = [
        ("chosen, mean", _number(length.chosen, unit)),
        ("rejected, mean", _number(length.rejected, unit)),
        ("difference, mean", _number(length.difference, unit, "+")),
        ("longest wins", percent(length.longest_wins)),
        ("correlation of score and length", _number(length.correlation, "", "+", 2)),
    ]
    return Section("Length bias", tuple(rows))


def _texts(d: Diagnosis) -> Section:
    rows = [("responses", str(d.diversity.responses))]
    rows += [(f"distinct-{n}", _number(v, "", "", 3)) for n, v in enumerate(d.diversity.distinct, start=1)]
    rows += [
        ("near duplicates", percent(d.diversity.near_duplicates)),
        ("pairs that differ in formatting alone", percent(d.formatting_only)),
        ("pairs contradicted elsewhere", percent(d.contradicted)),
    ]
    return Section("Responses", tuple(rows))


def _margins(d: Diagnosis) -> Section:
    if not d.margins:
        return Section("Margins", ())
    at = [d.margins[round(q * (len(d.margins) - 1))] for q in (0, 0.25, 0.5, 0.75, 1)]
    names = ("smallest", "lower quartile", "median", "upper quartile", "largest")
    rows = [(name, f"{value:.3g}") for name, value in zip(names, at, strict=True)]
    return Section("Margins", (*rows, ("kept ties", percent(d.ties))))


def _judge(d: Diagnosis) -> Section:
    j = d.judging
    if j is None:
        return Section("Judge", ())
    rows = [
        ("judgements", str(j.judgements)),
        ("ties", percent(j.ties)),
        ("orders that contradict each other", percent(j.flipped)),
        ("abstained", percent(j.abstained)),
        ("failed", percent(j.failed)),
    ]
    if j.round_robin:
        rows.append(("matches (of a full round robin)", f"{j.matches} of {j.round_robin}"))
    if j.seconds:  # not every judge takes its time
        rows.append(("seconds a judgement", _number(j.seconds, "", "", 3)))
    if j.cost:
        rows.append(("cost", f"{j.cost:.4g}"))
    return Section("Judge", tuple(rows))


def _agreement(d: Diagnosis) -> list[Section]:
    return [
        Section(
            f"{a.judge}, measured by {a.reference}",
            (
                ("matches both judged", str(a.matches)),
                ("accuracy without ties", percent(a.accuracy)),
                ("Cohen's kappa", _number(a.kappa, "", "+", 2)),
                ("the longer one would be", percent(a.longest)),
            ),
        )
        for a in d.agreement
    ]


def examples(d: Diagnosis) -> tuple[Example, ...]:
    """A few texts behind the numbers: pairs apart by formatting, near copies, the most unequal lengths."""
    dressed = [p for p in d.corpus.pairs if same_but_for_formatting(p.chosen.text, p.rejected.text)][:EXAMPLES]
    decided = [p for p in d.corpus.pairs if not p.tied]
    uneven = sorted(decided, key=lambda p: -abs(p.chosen.length - p.rejected.length))[:EXAMPLES]
    found = [Example("chosen and rejected differ in formatting alone", p.chosen.text, p.rejected.text) for p in dressed]
    found += [Example("two responses that are nearly the same", *two) for two in d.diversity.examples]
    found += [
        Example("chosen and rejected of the most unequal lengths", p.chosen.text, p.rejected.text) for p in uneven
    ]
    return tuple(Example(e.title, readable(e.first), readable(e.second)) for e in found)


def _number(value: float, unit: str, sign: str = "", digits: int = 1) -> str:
    return "-" if math.isnan(value) else f"{value:{sign}.{digits}f} {unit}".strip()
