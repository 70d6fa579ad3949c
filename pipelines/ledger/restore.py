"""A run directory made anew from its copy in a storage (``pipelines.ledger.copies`` says what lies where)."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from actors.files import replace_file
from configs.runs import TrainingConfig
from pipelines.ledger.checkpoints import MARK, Manifest, checkpoint_dir, damage
from pipelines.ledger.journal import LedgerError, saving
from pipelines.ledger.keeping import MEASURED
from pipelines.ledger.ledger import JOURNALS
from pipelines.ledger.lock import Owners, RunLock, this_process
from pipelines.ledger.record import RECORD, parse_record
from pipelines.ledger.storage import DirectoryStorage, Storage, StorageError, open_storage

_RESTORING = "restoring"
EVENTS = "events"
PLACES = {**{name: f"ledger/{name}.jsonl" for name in JOURNALS}, EVENTS: "tracking/events.jsonl"}
"""Where each journal that is copied lies in a run directory: the ledger's, and what tracking has measured."""
FILES = ("config.yaml", "tracking/delivered.json")
"""Small files that are copied whole. What says how far MLflow has got is never ahead of the events."""
_CHECKPOINT = re.compile(r"checkpoints/step-(\d+)/(\d+)/" + re.escape(MARK))


@dataclass(frozen=True, slots=True)
class Copied:
    """A checkpoint that a storage has, marked complete there."""

    step: int
    token: int  # of the owner that wrote it

    @property
    def prefix(self) -> str:
        return f"checkpoints/step-{self.step:06d}/{self.token:06d}/"


def restore_run(config: TrainingConfig, resume: str, say: Callable[[str], None]) -> None:
    """Where the run directory is absent and ``checkpoint.storage`` has the run: restore it, or refuse a new one."""
    run_dir = Path(config.run.root) / config.run.name
    if not config.checkpoint.storage or (run_dir / RECORD).exists():
        return
    storage = open_storage(config.checkpoint.storage, config.run.name)
    if resume != "never":
        restore(storage, run_dir, say)
    elif storage.keys("run/"):
        raise LedgerError(
            f"{storage.url} holds a run of this name; go on with --resume=auto, which restores it, or choose another "
            f"run.name (e.g. run.name={config.run.name}-2)"
        )


def restore(storage: Storage, run_dir: Path, say: Callable[[str], None]) -> bool:
    """Make a run directory anew from its copy: record, journals, newest whole checkpoint, exported model.

    False where the storage holds no run. ``run.json`` is written last: without it the directory is no run, and another
    call begins again. Raises LedgerError where the copy is damaged, or ``run_dir`` holds something else.
    """
    records = storage.keys("run/")
    if not records:
        return False
    if run_dir.exists() and any(run_dir.iterdir()) and not (run_dir / _RESTORING).exists():
        raise LedgerError(f"{run_dir} exists and is not a run; choose another run.name or run.root")
    lock = RunLock(run_dir)
    try:
        with saving("what is restored", run_dir):
            (run_dir / _RESTORING).touch()
            for folder in ("ledger", "checkpoints", "tracking", "model"):
                shutil.rmtree(run_dir / folder, ignore_errors=True)
                (run_dir / folder).mkdir()
            (run_dir / "model").rmdir()
            say(f"restoring {run_dir} from {storage.url}")
            _restore_journals(storage, run_dir)
            _restore_files(storage, run_dir)
            _restore_checkpoint(storage, run_dir, say)
            if measured := storage.get(MEASURED):
                replace_file(run_dir / MEASURED, measured)
            _restore_model(storage, run_dir)
            if tokens := Owners(storage).tokens():  # the next owner has to come after all of them
                last = Owners(storage).read(tokens[-1]) or this_process(0)
                Owners(DirectoryStorage(run_dir)).write(replace(last, token=tokens[-1], until=time.time()))
            data = storage.get(records[-1]) or b""
            parse_record(data, f"{storage.url}/{records[-1]}")
            (run_dir / _RESTORING).unlink()
            replace_file(run_dir / RECORD, data)
    finally:
        lock.close()
    return True


def pieces(storage: Storage) -> dict[str, list[tuple[int, int, str]]]:
    """(token, first byte, key) of every journal's pieces, in the order in which they are laid over each other."""
    found: dict[str, list[tuple[int, int, str]]] = {name: [] for name in PLACES}
    for key in storage.keys("ledger/"):
        _, name, piece = key.split("/")
        token, _, start = piece.partition("-")
        if name in found:
            found[name].append((int(token), int(start), key))
    return {name: _valid(sorted(pieces)) for name, pieces in found.items()}


def _valid(pieces: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Without what an owner wrote of bytes that a later owner has taken over."""
    kept: list[tuple[int, int, str]] = []
    limits: dict[int, float] = {}  # first byte that a later owner wrote, by token
    for token, start, key in reversed(pieces):
        later = (first for other, first in limits.items() if other > token)
        if start < min(later, default=float("inf")):
            kept.append((token, start, key))
        limits[token] = start  # pieces come in falling order: the last one that is seen is the first
    return kept[::-1]


def _restore_journals(storage: Storage, run_dir: Path) -> None:
    for name, found in pieces(storage).items():
        content = bytearray()
        for _, start, key in found:
            if start > len(content):
                raise StorageError(f"{storage.url}: journal {name} lacks its bytes from {len(content)} to {start}")
            del content[start:]  # what an owner wrote after another had taken over
            content += storage.get(key) or b""
        replace_file(run_dir / PLACES[name], bytes(content))


def _restore_files(storage: Storage, run_dir: Path) -> None:
    for key in storage.keys("files/"):  # in the order of their owners
        name = key.split("/", 2)[2]
        if name in FILES:
            replace_file(run_dir / name, storage.get(key) or b"")


def copied_checkpoints(storage: Storage) -> list[Copied]:
    found = (_CHECKPOINT.fullmatch(key) for key in storage.keys("checkpoints/"))
    return sorted((Copied(int(m[1]), int(m[2])) for m in found if m), key=lambda c: (c.step, c.token))


def _restore_checkpoint(storage: Storage, run_dir: Path, say: Callable[[str], None]) -> None:
    """The newest that arrives whole; without one the run is replayed from its beginning."""
    for copied in reversed(copied_checkpoints(storage)):
        target = checkpoint_dir(run_dir, copied.step)
        partial = target.with_name(f"{target.name}.partial")
        wrong = _fetch(storage, copied.prefix, partial)
        if not wrong:
            partial.rename(target)
            return
        say(f"the copy of checkpoint {target.name} at {storage.url} is damaged, the one before it is used: {wrong}")
        shutil.rmtree(partial, ignore_errors=True)


def _restore_model(storage: Storage, run_dir: Path) -> None:
    marks = [k for k in storage.keys("model/") if k.endswith(f"/{MARK}")]
    if marks:
        partial = run_dir / "model.partial"
        shutil.rmtree(partial, ignore_errors=True)
        if wrong := _fetch(storage, marks[-1].removesuffix(MARK), partial):
            raise StorageError(f"the copy of the model at {storage.url} is damaged: {wrong}")
        (partial / MARK).unlink()
        partial.rename(run_dir / "model")


def _fetch(storage: Storage, prefix: str, directory: Path) -> str:
    """Download what a manifest names; what is wrong with it, empty where it is whole."""
    mark = storage.get(f"{prefix}{MARK}")
    try:
        manifest = Manifest.parse(mark or b"", f"{storage.url}/{prefix}{MARK}")
        for file in manifest.files:
            if Path(file.path).is_absolute() or ".." in Path(file.path).parts:
                return f"{prefix}{MARK} names {file.path}, which lies outside"
            storage.download(f"{prefix}{file.path}", directory / file.path)
    except LedgerError as error:
        return str(error)
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / MARK, mark or b"")
    return damage(directory)
