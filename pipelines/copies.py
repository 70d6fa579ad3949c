"""Copies of a run in a storage, made in the background, and the run directory made anew from them.

    <checkpoint.storage>/<run.name>/
      owners/000003.json                           who makes them (``pipelines.lock``)
      run/000003.json                              run.json as owner 3 wrote it last
      ledger/steps/000003-000000000004096          what owner 3 committed to a journal from that byte on
      checkpoints/step-000008/000003/trainer/...   files as owner 3 wrote them, and last of all complete.json
      model/000003/...                             the exported model, likewise

Every object is written once, but for the records of owner and run, and under the writer's own token: what a process
that was declared dead may still write lies beside what counts, never in it.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from actors.files import FileSum, replace_file
from configs.runs import TrainingConfig
from configs.schema import Checkpointing
from pipelines.checkpoints import (
    MARK,
    Manifest,
    Measured,
    checkpoint_dir,
    complete_checkpoints,
    damage,
    kept_steps,
    read_manifest,
)
from pipelines.journal import LedgerError, saving
from pipelines.ledger import JOURNALS, Ledger
from pipelines.lock import Lease, Owners, RunLock, this_process
from pipelines.record import RECORD, parse_record, read_record
from pipelines.storage import DirectoryStorage, Storage, StorageError, open_storage

PIECE = 32 * 2**20  # most bytes of a journal in one object
_PAUSES = (1.0, 5.0, 15.0, 60.0)  # between attempts where the storage refuses or is out of reach; the last one repeats
LAST_COPIES_S = 30.0  # for the last ones of a run that was stopped or has failed
_RESTORING = "restoring"
MEASURED = "checkpoints/measured.json"
_CHECKPOINT = re.compile(r"checkpoints/step-(\d+)/(\d+)/" + re.escape(MARK))


@dataclass(frozen=True, slots=True)
class Copied:
    """A checkpoint that a storage has, marked complete there."""

    step: int
    token: int  # of the owner that wrote it

    @property
    def prefix(self) -> str:
        return f"checkpoints/step-{self.step:06d}/{self.token:06d}/"


class Copies:
    """Keeps a storage up with a ledger, in a thread of its own: no step waits for it, at most one pass is under way."""

    def __init__(
        self, ledger: Ledger, storage: Storage, lease: Lease, rules: Checkpointing, say: Callable[[str], None]
    ) -> None:
        self._ledger, self._storage, self._lease, self._rules, self._say = ledger, storage, lease, rules, say
        self._copied = dict.fromkeys(JOURNALS, 0)
        self._known: set[Copied] | None = None  # until the storage has been asked
        self._record = b""
        self._measured: Measured | None = None
        self._model = False
        self._busy: Path | None = None
        self._failed = ""
        self._wake, self._over = threading.Event(), threading.Event()
        ledger.on_commit = ledger.checkpoints.sealed = self._wake.set
        ledger.checkpoints.in_use = lambda: self._busy
        ledger.lock.copies = lease
        self._thread = threading.Thread(target=self._keep_up, name="copies", daemon=True)
        self._thread.start()

    def _keep_up(self) -> None:
        failures = 0
        while not self._over.is_set():
            if not failures:
                self._wake.wait()
                self._wake.clear()
            elif self._over.wait(_PAUSES[min(failures, len(_PAUSES)) - 1]):
                return
            failures = 0 if self._try() else failures + 1
            if self._lease.lost:
                return

    def _try(self) -> bool:
        """One pass; whether the storage has everything now."""
        try:
            self.copy()
        except (LedgerError, OSError) as error:
            if not self._failed:
                self._say(f"copies to {self._storage.url} fail ({error}); the run goes on, and they are tried again")
            self._failed = str(error)
            return False
        if self._failed:
            self._say(f"copies to {self._storage.url} are up to date again")
        self._failed = ""
        return True

    def copy(self) -> None:
        """Bring the storage up to date. Raises LedgerError where it refuses, or another owner has taken over."""
        self._lease.check()
        if self._known is None:
            self._find_copied()
        self._copy_journals()
        self._copy_record()
        self._copy_checkpoints()
        self._copy_model()

    def close(self, seconds: float) -> None:
        """Copy what is left for at most ``seconds``, say what is missing, and give the storage back."""
        self._over.set()
        self._wake.set()
        deadline = time.monotonic() + seconds
        self._thread.join(seconds)
        done = False
        for pause in (0.0, *_PAUSES):
            if self._thread.is_alive() or self._lease.lost or time.monotonic() + pause > deadline:
                break
            time.sleep(pause)
            if done := self._try():
                break
        if not done:
            self._say(
                f"THE COPY AT {self._storage.url} IS INCOMPLETE ({self._failed or 'there was no time'}); the run "
                f"directory {self._ledger.run_dir} is whole: --resume=auto copies the rest"
            )
        traffic = self._storage.traffic
        again = f", {traffic.retried} requests repeated ({traffic.throttled} throttled)" if traffic.retried else ""
        self._say(f"copied {traffic.uploaded_bytes / 1e9:.3g} GB to {self._storage.url}{again}")
        self._lease.close()

    def _find_copied(self) -> None:
        for name, pieces in _pieces(self._storage).items():
            self._copied[name] = _length(pieces)
        known = set(_checkpoints(self._storage))
        for name, size in self._ledger.sizes().items():
            start = self._copied[name] = min(self._copied[name], size)
            self._storage.put(self._piece(name, start), b"")  # from here on only what this owner writes counts
        self._known = known

    def _piece(self, journal: str, start: int) -> str:
        return f"ledger/{journal}/{self._lease.token:06d}-{start:015d}"

    def _copy_journals(self) -> None:
        for name, size in self._ledger.sizes().items():
            with (self._ledger.run_dir / "ledger" / f"{name}.jsonl").open("rb") as file:
                while (start := self._copied[name]) < size:
                    file.seek(start)
                    piece = file.read(min(PIECE, size - start))
                    self._storage.put(self._piece(name, start), piece)
                    self._copied[name] += len(piece)

    def _copy_record(self) -> None:
        record = (self._ledger.run_dir / RECORD).read_bytes()
        if record != self._record:
            self._storage.put(f"run/{self._lease.token:06d}.json", record)
            self._record = record

    def _copy_checkpoints(self) -> None:
        assert self._known is not None
        run_dir = self._ledger.run_dir
        for step, path in reversed(complete_checkpoints(run_dir)):
            with self._in_use(path), suppress(FileNotFoundError):  # it was superseded meanwhile
                manifest = read_manifest(path)
                copied = Copied(step, manifest.token)
                if copied not in self._known:
                    self._copy_files(path, copied.prefix, manifest)
                    self._known.add(copied)
        measured = Measured.read(run_dir, self._rules.best_metric)
        if measured.values and measured != self._measured:
            self._storage.put(MEASURED, measured.encode())
            self._measured = measured
        kept = kept_steps({c.step for c in self._known}, self._rules, measured.values)
        for old in [c for c in self._known if c.step not in kept]:
            keys = self._storage.keys(old.prefix)
            self._storage.delete(sorted(keys, key=lambda k: not k.endswith(MARK)))  # unmarked first
            self._known.discard(old)

    def _copy_files(self, path: Path, prefix: str, manifest: Manifest) -> None:
        """Files in any order, the completion mark last, if this is still the owner."""
        for file in manifest.files:
            self._storage.upload(f"{prefix}{file.path}", path / file.path)
        self._lease.check()
        self._storage.put(f"{prefix}{MARK}", manifest.encode())

    def _copy_model(self) -> None:
        record, model = read_record(self._ledger.run_dir), self._ledger.run_dir / "model"
        if self._model or record is None or not record.finished or not (model / "config.json").exists():
            return
        files = tuple(FileSum.of(p, model) for p in sorted(model.rglob("*")) if p.is_file())
        prefix = f"model/{self._lease.token:06d}/"
        self._copy_files(model, prefix, Manifest(record.finished, "", self._lease.token, time.time(), files))
        self._storage.delete(k for k in self._storage.keys("model/") if not k.startswith(prefix))
        self._model = True

    @contextmanager
    def _in_use(self, path: Path) -> Iterator[None]:
        self._busy = path
        try:
            yield
        finally:
            self._busy = None


def open_copies(config: TrainingConfig, ledger: Ledger, say: Callable[[str], None]) -> Copies | None:
    """Begin to copy the run to ``checkpoint.storage``, if there is one. ``run.json`` has been written.

    Raises LedgerError where the storage does not answer, another process copies there, or its copy is ahead.
    """
    if not config.checkpoint.storage:
        return None
    storage = open_storage(config.checkpoint.storage, config.run.name)
    lease = Lease(storage, ledger.lock.owner, config.deadlines.lease_s, say)
    return Copies(ledger, storage, lease, config.checkpoint, say)


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
            for folder in ("ledger", "checkpoints", "model"):
                shutil.rmtree(run_dir / folder, ignore_errors=True)
                (run_dir / folder).mkdir()
            (run_dir / "model").rmdir()
            say(f"restoring {run_dir} from {storage.url}")
            _restore_journals(storage, run_dir)
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


def _pieces(storage: Storage) -> dict[str, list[tuple[int, int, str]]]:
    """(token, first byte, key) of every journal's pieces, in the order in which they are laid over each other."""
    found: dict[str, list[tuple[int, int, str]]] = {name: [] for name in JOURNALS}
    for key in storage.keys("ledger/"):
        _, name, piece = key.split("/")
        token, _, start = piece.partition("-")
        if name in found:
            found[name].append((int(token), int(start), key))
    return {name: sorted(pieces) for name, pieces in found.items()}


def _length(pieces: list[tuple[int, int, str]]) -> int:
    """A byte up to which the pieces are known to reach: the last one's beginning."""
    return pieces[-1][1] if pieces else 0


def _restore_journals(storage: Storage, run_dir: Path) -> None:
    for name, pieces in _pieces(storage).items():
        content = bytearray()
        for _, start, key in pieces:
            if start > len(content):
                raise StorageError(f"{storage.url}: journal {name} lacks its bytes from {len(content)} to {start}")
            del content[start:]  # what an owner wrote after another had taken over
            content += storage.get(key) or b""
        replace_file(run_dir / "ledger" / f"{name}.jsonl", bytes(content))


def _checkpoints(storage: Storage) -> list[Copied]:
    found = (_CHECKPOINT.fullmatch(key) for key in storage.keys("checkpoints/"))
    return sorted((Copied(int(m[1]), int(m[2])) for m in found if m), key=lambda c: (c.step, c.token))


def _restore_checkpoint(storage: Storage, run_dir: Path, say: Callable[[str], None]) -> None:
    """The newest that arrives whole; without one the run is replayed from its beginning."""
    for copied in reversed(_checkpoints(storage)):
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
