"""``rondo status``: what a run has done, is doing and waits for, from its directory alone; no cluster is needed."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipelines.data.runs import groups_of, record_of, steps_of
from pipelines.disk import shared_memory_of, size_of
from pipelines.ledger.checkpoints import complete_checkpoints
from pipelines.ledger.events import DIED, Attempt, History, Incarnation, history
from pipelines.ledger.judged import undecided
from pipelines.ledger.lock import owner_of
from preference.types import Fate, JudgeFailure, Message, Prompt

if TYPE_CHECKING:
    from rich.console import Console

State = Literal["running", "finished", "stopped", "failed", "died"]


@dataclass(frozen=True, slots=True)
class InFlight:
    """A step that the weights do not hold yet."""

    step: int
    prompts: int
    """Sampled and judged so far, those that people are asked about included."""
    complete: bool
    """Its data is complete, and it is to be trained on."""


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of a run. Times are seconds, sizes bytes."""

    directory: str
    state: State
    owner: str
    """The process that works on it; empty where none does."""
    done: int
    """Steps in the present weights."""
    planned: int
    """Steps that it is to have; 0: not recorded."""
    in_flight: tuple[InFlight, ...]
    waiting: Mapping[int, int]
    """How many prompts wait for people, by the step that asked."""
    fates: Mapping[str, int]
    """Of the prompts of all complete steps; a prompt that people have decided since no longer counts as waiting."""
    items: int
    """Trained on, by the present weights."""
    version: str
    attempts: tuple[Attempt, ...]
    incarnations: tuple[Incarnation, ...]
    replaced: int
    """Steps trained by dead incarnations and trained again since, or to be."""
    setback_s: float
    faults: Mapping[str, int]
    """Actors lost and replaced, by stage."""
    last_fault: str
    judgements: int
    judge_failures: int
    judge_cost: float
    checkpoints: Mapping[str, int]
    """Size of every complete one, oldest first."""
    disk: Mapping[str, int]
    """What the parts of the run's directory take, and its weights in shared memory."""


def read_status(run_dir: Path) -> Status:
    """Raises DataError naming file and line where the directory holds no run, or a damaged one."""
    record = record_of(run_dir)
    working = str(owner_of(run_dir) or "")
    told = history(steps_of(run_dir))
    groups = groups_of(run_dir)
    begun = Counter(g.step for g in groups if g.step > told.done)
    ahead = sorted({s for s in told.prepared if s > told.done} | begun.keys())
    waiting = Counter(g.step for g in undecided(groups, {g.prompt_id: _nameless(g.prompt_id) for g in groups}))
    fates: Counter[str] = Counter()
    for prepared in told.prepared.values():
        fates.update({fate.value: n for fate, n in (prepared.fates or {}).items()})
    if fates[Fate.WAITING]:
        fates[Fate.WAITING] = sum(waiting.values())
    opinions = [j for g in groups for j in (*g.judgements, *g.overruled)]
    newest = told.trained.get(told.done)
    return Status(
        directory=str(run_dir),
        state=_state(record.finished, working, told),
        owner=working,
        done=told.done,
        planned=told.planned or record.finished,
        in_flight=tuple(InFlight(s, begun[s], s in told.prepared) for s in ahead),
        waiting=dict(sorted(waiting.items())),
        fates=dict(+fates),
        items=sum(len(told.prepared[s].pairs) for s in told.trained if s in told.prepared),
        version=newest.version if newest else "",
        attempts=_attempts(told, record.attempts, working),
        incarnations=tuple(told.incarnations),
        replaced=told.replaced,
        setback_s=told.setback_s,
        faults=dict(Counter(f.stage for f in told.faults)),
        last_fault=told.faults[-1].cause if told.faults else "",
        judgements=len(opinions),
        judge_failures=sum(isinstance(j, JudgeFailure) for j in opinions),
        judge_cost=math.fsum(j.cost for j in opinions),
        checkpoints={path.name: size_of(path) for _, path in complete_checkpoints(run_dir)},
        disk=disk_use(run_dir),
    )


def phases(run_dir: Path) -> list[Path]:
    """The run, and before it the supervised phase that it began with, if it had one."""
    return [p for p in (run_dir / "sft", run_dir) if p == run_dir or (p / "run.json").is_file()]


def _nameless(prompt_id: str) -> Prompt:
    return Prompt(prompt_id, (Message("user", prompt_id),), ())


def disk_use(run_dir: Path) -> dict[str, int]:
    """Bytes by part of the run's directory, the largest first; with what lies in shared memory."""
    parts = {path.name: size_of(path) for path in run_dir.iterdir()}
    if shared := sum(map(size_of, shared_memory_of(run_dir))):
        parts["shared memory"] = shared
    return dict(sorted(parts.items(), key=lambda part: -part[1]))


def _state(finished: int, working: str, told: History) -> State:
    if working:
        return "running"
    if finished:
        return "finished"
    ends: Mapping[str, State] = {"FAILED": "failed", "": "died" if told.attempts else "stopped"}
    return ends.get(told.status, "stopped")


def _attempts(told: History, known: int, working: str) -> tuple[Attempt, ...]:
    if not told.attempts:
        return (Attempt(known, "", None, None, "attempts were not recorded"),)
    *before, last = told.attempts
    if not last.why:
        last = replace(last, why="under way") if working else replace(last, ended=told.last, why=DIED)
    return (*before, last)


# -- shown -----------------------------------------------------------------------------------------------------------


def show(status: Status, console: Console) -> None:
    """As a table of two columns; text from the run is shown as it is, never as markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2), title=status.directory, title_justify="left")
    for name, value in _rows(status):
        table.add_row(Text(name, "dim"), Text(value))
    console.print(table)


def _rows(status: Status) -> Iterable[tuple[str, str]]:
    of = f" of {status.planned}" if status.planned else ""
    yield "state", f"{status.state}: {status.owner}" if status.owner else status.state
    yield "steps done", f"{status.done}{of}, {status.items} items trained"
    if status.version:
        yield "weights", f"version {status.version}"
    for step in status.in_flight:
        yield f"step {step.step}", f"{step.prompts} prompts judged" + (", data complete" if step.complete else "")
    if status.waiting:
        told = ", ".join(f"{n} of step {step}" for step, n in status.waiting.items())
        yield "waiting for people", f"{sum(status.waiting.values())} prompts: {told}"
    yield "fates", ", ".join(f"{n} {fate}" for fate, n in status.fates.items()) or "none yet"
    cost = f", cost {status.judge_cost:.6g}" if status.judge_cost else ""
    yield "judgements", f"{status.judgements}, {status.judge_failures} failed or abstained{cost}"
    for attempt in status.attempts:
        when = f"{_clock(attempt.began)} to {_clock(attempt.ended)}"
        yield (
            f"attempt {attempt.number}",
            f"{when}  {attempt.why}" + (f"  ({attempt.process})" if attempt.process else ""),
        )
    if len(status.incarnations) > 1:
        for i in status.incarnations:
            yield f"incarnation {i.number}", f"steps {i.done + 1} to {i.reached}" if i.reached > i.done else "no step"
    yield "set back", f"{_duration(status.setback_s)}; {status.replaced} steps trained again"
    lost = ", ".join(f"{n} {stage}" for stage, n in status.faults.items())
    yield "actors replaced", f"{lost}; last: {status.last_fault}" if lost else "none"
    yield "checkpoints", ", ".join(f"{name} ({_size(n)})" for name, n in status.checkpoints.items()) or "none"
    parts = ", ".join(f"{name} {_size(n)}" for name, n in status.disk.items() if n >= 1e5)
    yield "disk", f"{_size(sum(status.disk.values()))}: {parts}"


def _clock(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S") if seconds is not None else "?"


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m} min" if hours else f"{m} min {s} s" if m else f"{s} s"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def status(run_dir: Path, console: Console, *, as_json: bool = False) -> None:
    """Print what is known of a run, its supervised phase first. Raises DataError."""
    found = [read_status(phase) for phase in phases(run_dir)]
    if as_json:
        console.file.write(json.dumps([asdict(s) for s in found], indent=1) + "\n")
        return
    for one in found:
        show(one, console)
