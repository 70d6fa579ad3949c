"""Copies of a run in a storage, made in the background, and the run directory made anew from them.

    <checkpoint.storage>/<run.name>/
      owners/000003.json                           who makes them (``pipelines.ledger.lock``)
      run/000003.json                              run.json as owner 3 wrote it last
      ledger/steps/000003-000000000004096          what owner 3 committed to a journal from that byte on
      files/000003/config.yaml                     small files that change as a whole
      checkpoints/step-000008/000003/trainer/...   files as owner 3 wrote them, and last of all complete.json
      model/000003/...                             the exported model, likewise

Every object is written once, but for records and small files, and under the writer's own token: what a process
that was declared dead may still write lies beside what counts, never in it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from actors.files import FileSum
from configs.runs import TrainingConfig
from configs.schema import Checkpointing
from pipelines.ledger.checkpoints import MARK, Manifest, complete_checkpoints, read_manifest
from pipelines.ledger.journal import LedgerError
from pipelines.ledger.keeping import MEASURED, Measured, kept_steps
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.lock import Lease
from pipelines.ledger.record import RECORD, read_record
from pipelines.ledger.restore import EVENTS, FILES, PLACES, Copied, copied_checkpoints, pieces
from pipelines.ledger.storage import Storage, open_storage

PIECE = 32 * 2**20  # most bytes of a journal in one object
_PAUSES = (1.0, 5.0, 15.0, 60.0)  # between attempts where the storage refuses or is out of reach; the last one repeats
LAST_COPIES_S = 30.0  # for the last ones of a run that was stopped or has failed


class Copies:
    """Keeps a storage up with a ledger, in a thread of its own: no step waits for it, at most one pass is under way."""

    def __init__(
        self, ledger: Ledger, storage: Storage, lease: Lease, rules: Checkpointing, say: Callable[[str], None]
    ) -> None:
        self._ledger, self._storage, self._lease, self._rules, self._say = ledger, storage, lease, rules, say
        self._copied = dict.fromkeys(PLACES, 0)
        self._known: set[Copied] | None = None  # until the storage has been asked
        self._record = b""
        self._small: dict[str, bytes] = {}
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
        files = self._files()
        self._copy_journals()
        self._copy_small(files)
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
        for name, found in pieces(self._storage).items():
            self._copied[name] = found[-1][1] if found else 0  # it reaches that far, and further by its last piece
        known = set(copied_checkpoints(self._storage))
        for name, size in self._sizes().items():
            start = self._copied[name] = min(self._copied[name], size)
            self._storage.put(self._piece(name, start), b"")  # from here on only what this owner writes counts
        self._known = known

    def _piece(self, journal: str, start: int) -> str:
        return f"ledger/{journal}/{self._lease.token:06d}-{start:015d}"

    def _sizes(self) -> dict[str, int]:
        """Bytes of every journal that may be copied."""
        events = self._ledger.run_dir / PLACES[EVENTS]
        return {EVENTS: events.stat().st_size if events.exists() else 0, **self._ledger.sizes()}

    def _copy_journals(self) -> None:
        for name, size in self._sizes().items():
            if self._copied[name] == size:
                continue
            with (self._ledger.run_dir / PLACES[name]).open("rb") as file:
                while (start := self._copied[name]) < size:
                    file.seek(start)
                    piece = file.read(min(PIECE, size - start))
                    piece = piece[: piece.rfind(b"\n") + 1]
                    if not piece:  # events are still being written
                        break
                    self._storage.put(self._piece(name, start), piece)
                    self._copied[name] += len(piece)

    def _files(self) -> dict[str, bytes]:
        found = {}
        for name in FILES:
            with suppress(FileNotFoundError):
                found[name] = (self._ledger.run_dir / name).read_bytes()
        return found

    def _copy_small(self, files: dict[str, bytes]) -> None:
        for name, content in files.items():
            if self._small.get(name) != content:
                self._storage.put(f"files/{self._lease.token:06d}/{name}", content)
                self._small[name] = content

    def _copy_record(self) -> None:
        record = (self._ledger.run_dir / RECORD).read_bytes()
        if record != self._record:
            self._storage.put(f"run/{self._lease.token:06d}.json", record)
            self._record = record

    def _copy_checkpoints(self) -> None:
        assert self._known is not None
        run_dir = self._ledger.run_dir
        for step, path in reversed(complete_checkpoints(run_dir)):
            with self._in_use(path), suppress(FileNotFoundError):
                if not (path / MARK).exists():  # it was superseded meanwhile
                    continue
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
