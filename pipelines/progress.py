"""What the person sees: a live row a stage, one line an iteration, and an honest account at the end."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelines.look.plots import repetition
from pipelines.wording import SHORT, at_kl, clip, duration, judge_row, over_optimisation, plain, step_line
from preference.reports import EvalReport, SampleRow, StageTime, StepReport, TrainMetrics

_HEARTBEAT_S = 30.0  # without a terminal: a sign of life of a long stage this often, not a line an update


class Progress:
    """Prints to stdout; a context manager. No call raises, whatever a model wrote and whoever closed the pipe."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or _Console(highlight=False)
        if not self._console.is_terminal:
            self._console.width = 120  # a file has no width; tables of the end report need one
        self._rows: dict[tuple[int, str], _Row] = {}
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._last_line = self._started
        self._stages: dict[str, list[float]] = {}  # name -> [seconds, tokens], all iterations of this attempt
        self._first_rows: tuple[SampleRow, ...] = ()
        self._last_rows: tuple[SampleRow, ...] = ()
        live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(get_renderable=self._table, console=self._console, transient=True) if live else None

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_live()

    def stage(self, step: int, name: str, done: int, total: int, tokens: int, note: str = "") -> None:
        """Stage ``name`` of ``step`` has ``done`` of ``total`` items and has worked on ``tokens``. Call it often."""
        now = time.monotonic()
        with self._lock:
            row = self._rows.setdefault((step, name), _Row(step, name, now))
            row.done, row.total, row.tokens, row.note = done, total, tokens, note
            row.ended = (row.ended or now) if 0 < total <= done else None
        if self._live is None and now - self._last_line > _HEARTBEAT_S:
            self._say(
                f"  step {step} {name} {done}/{total}  {now - row.started:.0f}s  {row.rate(now)}  {note}".rstrip()
            )

    def step_done(self, report: StepReport, total_steps: int) -> None:
        """One line for the iteration; its live rows go."""
        self._forget(lambda row: row.step <= report.step)
        self._count(report.stages)
        if report.rows:
            self._first_rows, self._last_rows = self._first_rows or report.rows, report.rows
        width = self._console.width if self._console.is_terminal else None
        self._say(step_line(report, total_steps, width), "" if report.train else "yellow")

    def evaluated(self, report: EvalReport) -> None:
        """One line for an evaluation on held-out prompts."""
        self._forget(lambda row: row.name == "evaluate")
        self._count([StageTime("evaluate", report.seconds, 0)])
        for judged in report.judges:
            self._say(
                f"evaluation at step {report.step}  {judged.judge}: win rate {judged.win_rate}, at equal length "
                f"{judged.length_controlled:.3f}, score {judged.score_before:+.2f} -> {judged.score_after:+.2f}, "
                f"{at_kl(report)}",
                "cyan",
            )

    def heldout(self, step: int, metrics: TrainMetrics) -> None:
        """One line for loss and rewards on held-out items."""
        accuracy = ""
        if not math.isnan(metrics.rewards_accuracies):
            low, high = metrics.accuracy_interval
            accuracy = f", accuracy {metrics.rewards_accuracies:.3f} [{low:.3f}, {high:.3f}]"
            accuracy += f", margin {metrics.rewards_margins:+.3f}"
        self._say(f"held-out at step {step}: loss {metrics.loss:.4f}{accuracy} ({metrics.items} items)", "cyan")

    def message(self, text: str) -> None:
        """Something worth a line."""
        self._say(text)

    def warning(self, text: str) -> None:
        """Something that went wrong without ending the run."""
        self._say(f"warning: {text}", "yellow")

    def final(self, evaluation: EvalReport | None, export_dir: str | Path | None, ui_command: str) -> None:
        """The end report: win rates, over-optimisation, samples, where the time went, where everything is."""
        self._stop_live()
        seconds = time.monotonic() - self._started
        if evaluation is not None and evaluation.judges:
            self._results(evaluation, "Held-out answers against the initial policy's")
        self._say(f"\nWhere the time went ({duration(seconds)} in all)", "bold")
        spent = sorted(self._stages.items(), key=lambda item: -item[1][0])
        rest = seconds - sum(stage_seconds for _, (stage_seconds, _) in spent)
        if rest > 0:
            spent.append(("start-up and the rest", [rest, 0.0]))
        rows = [
            (SHORT.get(name, name), duration(s), f"{s / seconds:.0%}", f"{tokens / s:.0f}" if tokens and s else "")
            for name, (s, tokens) in spent
        ]
        self._show(_grid(("stage", "time", "share", "tokens/s"), rows, right=(1, 2, 3)))
        if rest < 0:
            self._say("  Stages overlapped: their times add up to more than the whole.")
        self._say("")
        if export_dir is not None:
            self._say(f"Model:   {export_dir}")
        self._say(f"MLflow:  {ui_command}")

    def compared(self, report: EvalReport, model: str | Path, against: str | Path) -> None:
        """The result of comparing two models outside a run."""
        self._stop_live()
        self._results(report, f"{model} against {against}")

    def _results(self, report: EvalReport, title: str) -> None:
        first = report.judges[0].win_rate
        prompts = first.wins + first.ties + first.losses
        self._say(f"\n{title}: {prompts} prompts, weights v{report.version}", "bold")
        header = ("judge", "win rate [Wilson 95%]", "won / tied / lost", "at equal length", "mean score")
        self._show(_grid(header, [judge_row(judged) for judged in report.judges]))
        per_token = f", {report.kl / report.length_after:.2f} per token" if report.length_after else ""
        kl = "unknown, without one" if math.isnan(report.kl) else f"{report.kl:.1f} nats per response{per_token}"
        self._say(f"  length {report.length_before:.1f} -> {report.length_after:.1f} tokens")
        self._say(f"  KL to the reference {kl}")
        self._say("")
        self._say(over_optimisation(report, repetition(self._first_rows, self._last_rows)), wrap=True)
        for example in report.examples[:3]:
            self._say("")
            self._say(f"prompt          {clip(example.prompt)}", "bold", wrap=True)
            self._say(f"before ({example.score_before:+.2f})  {clip(example.before)}", wrap=True)
            self._say(f"after  ({example.score_after:+.2f})  {clip(example.after)}", "green", wrap=True)

    def _count(self, stages: Iterable[StageTime]) -> None:
        for stage in stages:
            total = self._stages.setdefault(stage.name, [0.0, 0.0])
            total[0] += stage.seconds
            total[1] += stage.tokens

    def _forget(self, finished: Callable[[_Row], bool]) -> None:
        with self._lock:
            self._rows = {key: row for key, row in self._rows.items() if not finished(row)}

    def _table(self) -> RenderableType:
        """The live rows; called by rich's refresh thread."""
        now = time.monotonic()
        table = Table.grid(padding=(0, 2))
        with self._lock:
            for row in sorted(self._rows.values(), key=lambda row: (row.step, row.started)):
                state = "done" if row.ended else "running"
                cells: list[RenderableType] = [Text(f"step {row.step}"), Text(row.name), Text(state)]
                if self._console.width >= 90:
                    cells.append(ProgressBar(total=max(row.total, 1), completed=row.done, width=20))
                count = f"{row.done}/{row.total}" if row.total else ""
                cells += [Text(count), Text(f"{row.seconds(now):.1f}s"), Text(row.rate(now)), Text(plain(row.note))]
                table.add_row(*cells)
        return table

    def _stop_live(self) -> None:
        if self._live:
            with contextlib.suppress(OSError, ValueError):
                self._live.stop()

    def _say(self, text: str, style: str = "", wrap: bool = False) -> None:
        """Unless ``wrap``, a line stays one line, however long: what greps and scripts read."""
        self._show("\n".join(plain(line) for line in text.split("\n")), style, soft_wrap=not wrap)

    def _show(self, what: str | Table, style: str = "", soft_wrap: bool = False) -> None:
        self._last_line = time.monotonic()
        if isinstance(what, str):
            encoding = self._console.encoding
            what = what.encode(encoding, "replace").decode(encoding)
        with contextlib.suppress(OSError, ValueError):  # a closed terminal must not end the training
            self._console.print(Text(what) if isinstance(what, str) else what, style=style, soft_wrap=soft_wrap)


class _Console(Console):
    """A console whose reader may leave (``rondo run | head``): rich would end the process."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


@dataclass(slots=True)
class _Row:
    step: int
    name: str
    started: float
    ended: float | None = None
    done: int = 0
    total: int = 0
    tokens: int = 0
    note: str = ""

    def seconds(self, now: float) -> float:
        return (self.ended or now) - self.started

    def rate(self, now: float) -> str:
        seconds = self.seconds(now)
        return f"{self.tokens / seconds:.0f} tok/s" if self.done and self.tokens and seconds > 0.05 else ""


def _grid(header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for index, title in enumerate(header):
        table.add_column(title, justify="right" if index in right else "left")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    return table
