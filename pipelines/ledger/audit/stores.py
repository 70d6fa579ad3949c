"""What lies beside the ledger: checkpoints, the exported model, and what was tracked, up to a local MLflow."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from pipelines.ledger.audit.findings import Findings
from pipelines.ledger.checkpoints import MARK, damage, marked_checkpoints, read_manifest
from pipelines.ledger.events import History
from pipelines.ledger.record import RunRecord
from pipelines.tracking.events import EVENTS, Stepped, parse
from pipelines.tracking.outbox import Cursor
from pipelines.tracking.tracker import CURSOR

EVERY_STEP = "time/iteration"
"""A metric that every step logs, whatever came of it."""


def check_checkpoints(run_dir: Path, told: History, found: Findings) -> None:
    """Complete checkpoints are whole, every byte of them, and hold steps that were trained."""
    reached = max((i.reached for i in told.incarnations), default=0)
    for directory in marked_checkpoints(run_dir):
        if wrong := damage(directory):
            found.breach(str(directory / MARK), wrong)
            continue
        step = read_manifest(directory).step
        if directory.name != f"step-{step:06d}":
            found.breach(str(directory / MARK), f"says step {step}")
        if step > reached:
            found.breach(str(directory / MARK), f"holds step {step}, and no more than {reached} were ever trained")
        found.counted["checkpoints"] += 1
    for path in sorted((run_dir / "checkpoints").glob("*.damaged")):
        found.notes.append(f"{path} was found damaged and put aside")


def check_model(run_dir: Path, record: RunRecord, told: History, found: Findings) -> None:
    """A finished run has trained all of its steps and has its model."""
    if not record.finished:
        return
    if told.done != record.finished:
        found.breach(
            str(run_dir / "run.json"), f"finished after step {record.finished}, but the weights hold {told.done} steps"
        )
    if not (run_dir / "model" / "config.json").is_file():
        found.breach(str(run_dir / "model"), "the run is finished, and its exported model is missing")


def check_tracking(run_dir: Path, record: RunRecord, told: History, found: Findings) -> None:
    """Every step that was logged is in the journal of what is tracked, and in MLflow once as soon as it was sent.

    Of MLflow's stores only a database of this machine is looked into.
    """
    ever = max((i.reached for i in told.incarnations), default=told.done)
    if ever < record.logged_step:
        found.breach(str(run_dir / "run.json"), f"step {record.logged_step} was logged, of {ever} ever trained")
    due = set(range(1, record.logged_step + 1))
    if (run_dir / EVENTS).exists():
        due = _sent(run_dir, record, due, found)
    file = _database(run_dir, told)
    if file is None or not record.mlflow_run:
        found.notes.append("MLflow's store is not on this machine: its steps were not looked at")
        return
    try:
        logged = _logged_steps(file, record.mlflow_run)
    except sqlite3.Error as error:
        found.breach(str(file), f"MLflow's database cannot be read: {error}")
        return
    if logged is None:
        found.breach(str(file), f"has no run {record.mlflow_run}")
        return
    twice = sorted(s for s, times in logged.items() if times > 1)
    if missing := sorted(due - logged.keys()):
        found.breach(str(file), f"run {record.mlflow_run} lacks {_steps(missing)}, which {run_dir.name} had logged")
    if twice:
        found.breach(str(file), f"run {record.mlflow_run} has {_steps(twice)} more than once")
    found.counted["steps in MLflow"] = len(logged)


def _sent(run_dir: Path, record: RunRecord, due: set[int], found: Findings) -> set[int]:
    """The steps that MLflow has taken; what waits to be sent is no breach."""
    path, at = run_dir / EVENTS, 0
    through = Cursor.read(run_dir / CURSOR, record.mlflow_run).offsets.get("metrics", 0)
    sent, waiting = set[int](), set[int]()
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        at += len(line)
        event = parse(line)
        if event is None and line.endswith(b"\n"):
            found.breach(f"{path}:{number}", "damaged record, or one of another version")
        if isinstance(event, Stepped):
            (sent if at <= through else waiting).add(event.step)
    if missing := sorted(due - sent - waiting):
        found.breach(str(path), f"lacks {_steps(missing)} of the {record.logged_step} that were logged")
    if waiting:
        found.notes.append(f"{_steps(sorted(waiting))} wait to be sent to MLflow (rondo sync)")
    return sent


def _steps(steps: list[int]) -> str:
    shown = ", ".join(map(str, steps[:5])) + (", ..." if len(steps) > 5 else "")
    return f"step {shown}" if len(steps) == 1 else f"steps {shown}"


def _database(run_dir: Path, told: History) -> Path | None:
    """The database that the last incarnation named; where none did, the one that lies in the run root by default."""
    if told.tracking:
        file = Path(told.tracking.removeprefix("sqlite:///"))
    elif told.last is None:  # schema 1 did not say
        file = run_dir.parent / "mlflow.db"
    else:
        return None
    return file if file.is_file() else None


def _logged_steps(file: Path, run: str) -> Mapping[int, int] | None:
    """How often each step was logged; None where the database has no such run."""
    with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=30)) as db:
        if db.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run,)).fetchone() is None:
            return None
        rows = db.execute(
            "SELECT step, COUNT(*) FROM metrics WHERE run_uuid = ? AND key = ? GROUP BY step", (run, EVERY_STEP)
        )
        return dict(rows.fetchall())
