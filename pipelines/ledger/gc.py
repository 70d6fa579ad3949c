"""``rondo gc``: free what no run needs any more. A run that is being worked on is never touched.

Freed are superseded checkpoints, what was never completed, weights that dead attempts left in shared memory or in the
run's directory, players that cannot be asked again, and what a migration of the ledger kept. The newest checkpoint, the
ledger and the exported model always stay.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from actors.weights import MANIFEST
from pipelines.disk import SHARED, shared_memory_of, size_of
from pipelines.ledger.checkpoints import MARK, complete_checkpoints, newest_whole, remove
from pipelines.ledger.journal import LedgerError
from pipelines.ledger.keeping import measured_steps
from pipelines.ledger.lock import RunLock, owner_of
from pipelines.ledger.migrate import BACKUP
from pipelines.ledger.status import phases

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Waste:
    """A file or directory that nothing needs."""

    path: Path
    why: str
    bytes: int


def collect(target: Path, say: Say, *, dry_run: bool = False) -> int:
    """Free what the run in ``target``, or every run under it, does not need; returns how many bytes that is.

    Raises LedgerError where ``target`` holds no run, or is a run that somebody works on.
    """
    alone = (target / "run.json").is_file()
    runs = [target] if alone else sorted(p.parent for p in target.glob("*/run.json"))
    if not runs:
        raise LedgerError(f"{target} is not a run, nor does it hold any: there is no run.json")
    freed = 0
    for run_dir in runs:
        try:
            freed += _collect_run(run_dir, say, dry_run)
        except LedgerError as error:
            if alone:
                raise
            say(f"{run_dir} is left alone: {error}")
    say(f"{'would free' if dry_run else 'freed'} {freed / 1e6:,.1f} MB")
    if foreign := foreign_weights(runs):
        total = sum(map(size_of, foreign)) / 1e6
        say(f"{len(foreign)} directories with weights ({total:,.1f} MB) in {SHARED} belong to runs elsewhere")
    return freed


def _collect_run(run_dir: Path, say: Say, dry_run: bool) -> int:
    if dry_run:  # takes no lock, which would leave a trace
        if working := owner_of(run_dir):
            raise LedgerError(f"{run_dir} is in use by {working}: wait until the run has ended")
        return _free(run_dir, say, dry_run)
    with closing(RunLock(run_dir)):
        return _free(run_dir, say, dry_run)


def _free(run_dir: Path, say: Say, dry_run: bool) -> int:
    freed = 0
    for phase in phases(run_dir):
        for waste in needless(phase):
            say(f"{waste.path}: {waste.why}, {waste.bytes / 1e6:,.1f} MB")
            if not dry_run:
                _remove(waste.path)
            freed += waste.bytes
    return freed


def needless(run_dir: Path) -> Iterator[Waste]:
    """What of a run that nobody works on can go."""
    for path, why in _needless(run_dir):
        yield Waste(path, why, size_of(path))


def _needless(run_dir: Path) -> Iterator[tuple[Path, str]]:
    kept = _kept_checkpoints(run_dir)
    for path in sorted((run_dir / "checkpoints").glob("step-*")):
        if path.name.endswith(".damaged"):
            yield path, "checkpoint that was found damaged"
        elif not (path / MARK).is_file():
            yield path, "checkpoint that was never completed"
        elif kept and path not in kept:
            yield path, "superseded checkpoint"
    for folder in (run_dir, run_dir / "ledger"):
        for path in sorted(folder.glob("*.partial")):
            yield path, "write that was broken off"
    for path in sorted((run_dir / "ledger").glob(f"*{BACKUP}*")):
        yield path, "journal as it was before a migration"
    if (run_dir / "weights").is_dir():
        yield run_dir / "weights", "published weights of an attempt that has ended"
    for path in shared_memory_of(run_dir):
        yield path, "published weights of an attempt that has ended"
    if (run_dir / "reference").is_dir():
        yield run_dir / "reference", "moved reference of an attempt that has ended; its checkpoint has a copy"
    if (run_dir / "ray-train").is_dir():
        yield run_dir / "ray-train", "Ray Train's notes of attempts that have ended"
    for path in sorted((run_dir / "players").glob("*")):
        if path.is_dir() and not (path / MANIFEST).is_file():
            yield path, "player that was never completed"


def _kept_checkpoints(run_dir: Path) -> set[Path]:
    """The newest whole checkpoint, and those that the run measured to keep the best of; none where none is whole."""
    newest = newest_whole(run_dir)
    if newest is None:
        return set()
    return {newest[1], *(path for step, path in complete_checkpoints(run_dir) if step in measured_steps(run_dir))}


def foreign_weights(runs: list[Path]) -> list[Path]:
    """Directories in shared memory that look like a run's and belong to none of ``runs``."""
    own = {path for run in runs for phase in phases(run) for path in shared_memory_of(phase)}
    return [path for path in sorted(SHARED.glob("rondo-*-attempt-*")) if path not in own]


def _remove(path: Path) -> None:
    if (path / MARK).is_file():
        remove(path)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
