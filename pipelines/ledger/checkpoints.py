"""Checkpoints on disk: written beside, summed and synced, marked complete, then renamed; old ones go only after that.

    checkpoints/
      step-000008/             trainer/ (``actors.shards``), reference/ where it moves, complete.json: the manifest
      step-000012.3-1.partial/ being written by owner 3, or left behind by a process that died: counts for nothing
      step-000004.damaged/     was found cut off or changed, and put aside
      measured.json            values of the metric that the best are kept by (``pipelines.ledger.keeping``)

What a step needs besides lies elsewhere or follows from its number: data order, prompt cursor and learning rate are
functions of the step, sampled and judged data are in the journals.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from actors.files import FileSum, checksum, replace_file, sync_directory, sync_file
from configs.schema import Checkpointing
from pipelines.ledger.journal import LedgerError, saving
from pipelines.ledger.keeping import Measured, kept_steps

MARK = "complete.json"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, slots=True)
class Manifest:
    """``complete.json``: what a checkpoint consists of. It is written last; without it there is no checkpoint."""

    step: PositiveInt
    version: str
    """The weights' incarnation and step."""
    token: NonNegativeInt
    """Of the owner that wrote it."""
    time: float
    """Seconds since the epoch."""
    files: tuple[FileSum, ...]

    @property
    def size(self) -> int:
        """Of all its files, in bytes."""
        return sum(f.bytes for f in self.files)

    def encode(self) -> bytes:
        body = _manifest.dump_json(self)
        return b'{"crc32": %d, "manifest": %s}' % (zlib.crc32(body), body)

    @classmethod
    def parse(cls, data: bytes, place: str) -> Manifest:
        """Inverse of ``encode``; raises LedgerError naming ``place``."""
        try:
            crc32 = json.loads(data)["crc32"]
            body = data.partition(b'"manifest": ')[2].rstrip()[:-1]
            if crc32 != zlib.crc32(body):
                raise LedgerError(f"{place} is damaged (checksum mismatch)")
            return _manifest.validate_json(body)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise LedgerError(f"{place} is damaged or of another version of Rondo: {reason}") from None


_manifest: TypeAdapter[Manifest] = TypeAdapter(Manifest)


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:06d}"


def marked_checkpoints(run_dir: Path) -> list[Path]:
    """Directories with a completion mark, oldest first; whether they are whole says ``damage``."""
    found = ((m.parent, _NAME.fullmatch(m.parent.name)) for m in (run_dir / "checkpoints").glob(f"step-*/{MARK}"))
    return [path for _, path in sorted((int(name[1]), path) for path, name in found if name)]


def read_manifest(directory: Path) -> Manifest:
    """Raises LedgerError where there is none, or it is damaged."""
    path = directory / MARK
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror or error}") from None
    return Manifest.parse(data, str(path))


def complete_checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, directory) of the checkpoints with a readable manifest, oldest first; their files are not looked at."""
    found = []
    for path in marked_checkpoints(run_dir):
        with suppress(LedgerError):
            found.append((read_manifest(path).step, path))
    return found


def damage(directory: Path) -> str:
    """What is wrong with a checkpoint, file by file against its manifest; empty where it is whole."""
    try:
        manifest = read_manifest(directory)
    except LedgerError as error:
        return str(error)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # checksums leave the interpreter's lock
        found = pool.map(lambda f: _damaged(directory / f.path, f), manifest.files)
        return next((d for d in found if d), "")


def _damaged(path: Path, expected: FileSum) -> str:
    try:
        if (size := path.stat().st_size) != expected.bytes:
            return f"{path} has {size} bytes instead of {expected.bytes}"
        if checksum(path)[0] != expected.crc32:
            return f"{path} has changed (checksum mismatch)"
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    return ""


def newest_whole(run_dir: Path) -> tuple[int, Path] | None:
    """(step, directory) of the newest checkpoint that is whole, every byte read; None where there is none."""
    for path in reversed(marked_checkpoints(run_dir)):
        if not damage(path):
            return read_manifest(path).step, path
    return None


def superseded(run_dir: Path, rules: Checkpointing) -> list[Path]:
    """What is not kept: all but the newest and the best checkpoints, and what dead processes left behind before."""
    steps = [step for step, _ in complete_checkpoints(run_dir)]
    measured = Measured.read(run_dir, rules.best_metric).values
    kept = {checkpoint_dir(run_dir, step) for step in kept_steps(steps, rules, measured)}
    found = ((path, _NAME.match(path.name)) for path in (run_dir / "checkpoints").glob("step-*"))
    return sorted(path for path, name in found if path not in kept and name and steps and int(name[1]) <= steps[-1])


def remove(checkpoint: Path) -> None:
    """Unmark, then delete: half of a checkpoint is never taken for one."""
    (checkpoint / MARK).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


class Checkpoints:
    """Those of a run that this process owns. One is written at a time; the disk catches up while training goes on."""

    def __init__(self, run_dir: Path, token: int = 0, check: Callable[[], None] = lambda: None) -> None:
        """``check`` raises where this process is not the run's owner any more."""
        self._run_dir, self._token, self._check = run_dir, token, check
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._sealing: Future[None] | None = None
        self._begun = 0
        self._newest: tuple[int, str] | None = None
        self.in_use: Callable[[], Path | None] = lambda: None
        """A checkpoint that must not be removed just now: it is being copied."""
        self.sealed: Callable[[], None] = lambda: None
        """Called, in another thread, when a checkpoint has become complete."""

    def begin(self, step: int) -> Path:
        """A new directory for the checkpoint of ``step``. Waits for the one before.

        Raises LedgerError where that one could not be completed, or where there is no room for another.
        """
        self.settle()
        self._check()
        self._begun += 1
        final = checkpoint_dir(self._run_dir, step)
        partial = final.with_name(f"{final.name}.{self._token}-{self._begun}.partial")
        with saving(f"the checkpoint of step {step}", final.parent):
            final.parent.mkdir(exist_ok=True)
            for left in final.parent.glob("*.partial"):
                shutil.rmtree(left, ignore_errors=True)
            if complete := complete_checkpoints(self._run_dir):
                _refuse_full_disk(step, partial, read_manifest(complete[-1][1]).size)
            partial.mkdir()
        return partial

    def seal(self, partial: Path, step: int, version: str, files: Sequence[FileSum], rules: Checkpointing) -> None:
        """Complete what has been written into ``partial``, in the background; ``files`` are summed already.

        An error is raised by the next ``begin`` or ``settle``.
        """
        self._sealing = self._thread.submit(self._seal, partial, step, version, tuple(files), rules)

    def settle(self) -> None:
        """Wait until the last checkpoint is complete; raises LedgerError where it could not be completed."""
        sealing, self._sealing = self._sealing, None
        if sealing is not None:
            sealing.result()

    def newest(self, say: Callable[[str], None], *, again: bool = False) -> tuple[int, str]:
        """Steps that the newest whole checkpoint holds, and its directory; (0, "") without one.

        Every byte is read, once until ``again``. What is damaged is named, put aside, and the one before is taken.
        """
        if self._newest is None or again:
            self.settle()
            self._newest = (0, "")
            for path in reversed(marked_checkpoints(self._run_dir)):
                if not (wrong := damage(path)):
                    self._newest = (read_manifest(path).step, str(path))
                    break
                aside = path.with_name(f"{path.name}.damaged")
                say(f"checkpoint {path.name} is damaged, the one before it is used: {wrong}; put aside as {aside.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
        return self._newest

    def measured(self, rules: Checkpointing, step: int, values: Mapping[str, float]) -> None:
        """Remember the metric that the best are kept by, if it is among the ``values`` of ``step`` and any are kept."""
        metric = rules.best_metric
        if rules.keep_best and math.isfinite(values.get(metric, math.nan)):
            known = Measured.read(self._run_dir, metric).values
            Measured(metric, {**known, step: values[metric]}).write(self._run_dir)

    def close(self) -> None:
        """Wait for what is under way; its error, if there is one, has lost its meaning."""
        self._thread.shutdown(wait=True)

    def _seal(self, partial: Path, step: int, version: str, files: tuple[FileSum, ...], rules: Checkpointing) -> None:
        final = checkpoint_dir(self._run_dir, step)
        with saving(f"the checkpoint of step {step}", final):
            summed = {f.path: f for f in files}
            for path in sorted(p for p in partial.rglob("*") if p.is_file()):
                name = path.relative_to(partial).as_posix()
                if name not in summed:
                    summed[name] = FileSum.of(path, partial)
                sync_file(path)
            if short := [f.path for f in files if (partial / f.path).stat().st_size != f.bytes]:
                raise LedgerError(f"{partial}: {short[0]} is not as its worker wrote it; is run.root one shared disk?")
            for folder in [p for p in partial.rglob("*") if p.is_dir()]:
                sync_directory(folder)
            manifest = Manifest(step, version, self._token, time.time(), tuple(summed.values()))
            replace_file(partial / MARK, manifest.encode())
            self._check()
            if final.exists():  # of a life of the weights that has ended
                remove(final)
            partial.rename(final)
            sync_directory(final.parent)
        self._newest = None
        for path in superseded(self._run_dir, rules):
            if path != self.in_use():
                remove(path)
        self.sealed()


def _refuse_full_disk(step: int, partial: Path, expected: int) -> None:
    free = shutil.disk_usage(partial.parent).free
    if free < expected:
        raise LedgerError(
            f"no room for the checkpoint of step {step}: the last one took {expected / 1e9:.2f} GB, and "
            f"{free / 1e9:.2f} GB are free at {partial.parent}; free space there and go on with --resume=auto: the "
            f"run is replayed from its last checkpoint"
        )
