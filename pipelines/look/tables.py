"""Reports of judging as tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.judging.rejudge import Opinionated, RejudgeReport
from pipelines.play.arena import ArenaReport
from pipelines.wording import duration, plain
from preference.agreement import Share


def show_rejudged(report: RejudgeReport, console: Console) -> None:
    """What changed, from the whole to the single prompts."""
    drift = report.drift
    v, p = drift.verdicts, drift.pairs
    _table(console, f"{report.run} judged anew: {drift.prompts} prompts", ("", "before", "now"), [
        ("judge", _names(report.old), _names(report.new)),
        ("definition", _definitions(report.old), _definitions(report.new)),
        ("judgements", str(report.old.metrics.judgements), str(report.new.metrics.judgements)),
        ("ties", _percent(report.old.metrics.ties), _percent(report.new.metrics.ties)),
        ("orders that contradict each other", _percent(report.old.metrics.flips), _percent(report.new.metrics.flips)),
        ("the longer one wins", _percent(report.old.metrics.longest), _percent(report.new.metrics.longest)),
        ("failed", str(report.old.metrics.failed), str(report.new.metrics.failed)),
        ("pairs", str(p.old), str(p.new)),
        (f"held-out win rate (step {report.heldout_step})", _rate(report.old), _rate(report.new)),
        *((f"prompts: {fate.value}", str(drift.fates_old.get(fate, 0)), str(drift.fates_new.get(fate, 0)))
          for fate in sorted({*drift.fates_old, *drift.fates_new})),
    ])  # fmt: skip
    _table(console, "What became of it", ("", "verdicts", "pairs"), [
        ("the same", _of(v.same, v.compared), _of(p.kept, p.old)),
        ("flipped", _of(v.flipped, v.compared), _of(p.flipped, p.old)),
        ("became ties", _of(v.became_ties, v.compared), _of(p.became_ties, p.old)),
        ("are no ties any more", _of(v.untied, v.compared), ""),
        ("lost (the judge failed or abstained; no pair follows)", str(v.lost), str(p.dropped)),
        ("new", str(v.gained), str(p.added)),
        ("agreement, ties left out", _share(v.agreement), ""),
        ("Cohen's kappa", f"{v.kappa:.3f}" if v.kappa == v.kappa else "undefined", ""),
    ])  # fmt: skip
    if drift.changed:
        rows = [(c.place, c.prompt_id, f"{c.change:.2f}", f"{c.old} -> {c.new}") for c in drift.changed]
        _table(console, "Prompts that changed most", ("step", "prompt", "P moved by", "fate"), rows, right=(2,))
    known = f", {report.remembered} known from before" if report.remembered else ""
    _say(console, f"{report.asked} questions asked{known}; {duration(report.seconds)}")
    _say(console, f"written to {report.directory}" + (f"; pairs: {report.pairs}" if report.pairs else ""))


def show_arena(report: ArenaReport, console: Console) -> None:
    """The ranking, and what it took."""
    _table(
        console,
        f"Arena on {report.prompts} held-out prompts, judged by {report.judge}",
        ("", "player", "Elo", "95% interval", "games", "won / tied / lost"),
        [
            (str(i), r.player, f"{r.rating:.0f}", _interval(r.low, r.high), str(r.games),
             f"{r.wins} / {r.ties} / {r.losses}")
            for i, r in enumerate(report.ratings, start=1)
        ],
        right=(0, 2, 3, 4, 5),
    )  # fmt: skip
    anchor = f"{report.anchor} is at 1000" if report.anchor else "the mean is 1000"
    _say(console, f"400 points are odds of ten to one; {anchor}")
    alike = sum(m.identical for m in report.meetings)
    said = f"{report.judged} matches were judged, everybody against everybody takes {report.everybody}"
    said += f"; {alike} more had the same answer twice" if alike else ""
    said += f"; the judge failed at {report.failed}" if report.failed else ""
    _say(console, f"{said}; {report.asked} asked now, {duration(report.seconds)}")
    _say(console, f"written to {report.directory}/report.json")


def _names(side: Opinionated) -> str:
    return ", ".join(dict.fromkeys(j.name for j in side.judges)) or "none"


def _definitions(side: Opinionated) -> str:
    return ", ".join(dict.fromkeys(j.definition_hash for j in side.judges)) or "none"


def _rate(side: Opinionated) -> str:
    return str(side.heldout) if side.heldout is not None else "not recorded"


def _interval(low: float, high: float) -> str:
    return f"[{low:.0f}, {high:.0f}]"


def _percent(rate: float) -> str:
    return f"{rate:.0%}" if rate == rate else "none"


def _of(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.0%})" if whole else str(part)


def _share(share: Share) -> str:
    if share.rate is None:
        return "undefined"
    return f"{share.rate:.3f} [{share.low:.3f}, {share.high:.3f}]"


def _table(
    console: Console, title: str, header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = (1, 2)
) -> None:
    table = Table(title=Text(plain(title)), title_justify="left", min_width=60)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    console.print(table)


def _say(console: Console, text: str) -> None:
    console.print(Text(plain(text)), soft_wrap=True)
