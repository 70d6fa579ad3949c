"""Who owns a run: one process at a time, each with a token greater than all before it.

    run directory
      lock                 held by flock while the owner lives; says who it is
      owners/000003.json   the third owner; the time of the file's last change is its last sign of life

An owner takes the next token by creating a file that is not there yet, which works on a local disk, on NFS and in a
bucket alike. It is presumed dead once it is known to be (its process is gone from this machine) or after ``lease_s``
without a sign of life. A process that was only asleep finds the greater token before it writes again (``check``), and
what it may still write carries its own, smaller one, by which readers pass over it (``pipelines.ledger.journal``).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from pipelines.ledger.journal import LedgerError, saving
from pipelines.ledger.storage import DirectoryStorage, Storage

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
Epoch = Annotated[float, Field(ge=0, le=1e11)]
"""Seconds since the epoch, of a year that calendars have."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that has worked on a run: an attempt's identity."""

    token: NonNegativeInt
    attempt: NonNegativeInt
    host: str
    boot: str  # of the machine: process ids mean nothing after a reboot
    pid: PositiveInt
    started: Epoch  # the process
    since: Epoch  # the ownership
    until: Epoch = 0.0  # when it was given back; 0: it never was

    def __str__(self) -> str:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} (attempt {self.attempt}, since {began})"

    @property
    def is_of_this_machine(self) -> bool:
        return (self.host, self.boot) == (socket.gethostname(), _boot())

    @property
    def is_running(self) -> bool:
        """Whether its process is there; only known on its own machine."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1
        except psutil.Error:
            return False


_owner: TypeAdapter[Owner] = TypeAdapter(Owner)


def this_process(attempt: int) -> Owner:
    """This process as an owner, without a token yet."""
    process = psutil.Process()
    return Owner(0, attempt, socket.gethostname(), _boot(), process.pid, process.create_time(), time.time())


def owners(run_dir: Path) -> list[Owner]:
    """Every owner that a run has had, in the order of their tokens; those whose record is damaged are left out."""
    return [o for o in Owners(DirectoryStorage(run_dir)).all() if o is not None]


def owner_of(run_dir: Path) -> Owner | str | None:
    """Who works on the run just now, as far as this machine can tell: takes no lock and changes nothing."""
    try:
        with (run_dir / "lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back as the file closes
            except BlockingIOError:
                return file.read().strip() or "another process"
            except OSError:
                pass  # no locks on this file system: the owner's sign of life has to do
    except OSError:
        return None
    last = Owners(DirectoryStorage(run_dir)).last()
    alive = last is not None and not last.until and last.is_of_this_machine and last.pid != os.getpid()
    return last if alive and last is not None and last.is_running else None


class Owners:
    """The owners of a run as a storage knows them."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def tokens(self) -> list[int]:
        names = (k.removeprefix("owners/").removesuffix(".json") for k in self._storage.keys("owners/"))
        return sorted(int(n) for n in names if n.isdigit())

    def all(self) -> list[Owner | None]:
        return [self.read(token) for token in self.tokens()]

    def last(self) -> Owner | None:
        tokens = self.tokens()
        return self.read(tokens[-1]) if tokens else None

    def read(self, token: int) -> Owner | None:
        """None where the record is damaged: its owner died writing it."""
        try:
            return _owner.validate_json(self._storage.get(_key(token)) or b"")
        except ValidationError:
            return None

    def claim(self, owner: Owner) -> Owner | None:
        """Become the owner with ``owner.token``, or the next one where that is 0; None where another was quicker."""
        claimed = replace(owner, token=owner.token or max(self.tokens(), default=0) + 1)
        return claimed if self._storage.create(_key(claimed.token), _encoded(claimed)) else None

    def write(self, owner: Owner) -> None:
        """Also a sign of life."""
        self._storage.put(_key(owner.token), _encoded(owner))

    def silence(self, token: int) -> float:
        """Seconds since the owner's last sign of life."""
        age = self._storage.age(_key(token))
        return float("inf") if age is None else age


class Lease:
    """Ownership of what a storage holds of a run, kept up by a sign of life every third of ``lease_s``."""

    def __init__(
        self, storage: Storage, owner: Owner, lease_s: float, say: Callable[[str], None], *, alone: bool = False
    ) -> None:
        """Waits for a silent owner of another machine until it counts as dead. Raises LedgerError naming a living one.

        ``owner.token``: 0, or the token to own it by. ``alone``: no other process of this machine can be here.
        """
        self._owners, self._url, self._lease_s = Owners(storage), storage.url, lease_s
        tokens = self._owners.tokens()
        if tokens:
            self._refuse_living(tokens[-1], say, alone)
            if 0 < owner.token <= tokens[-1]:
                raise LedgerError(
                    f"{storage.url} has been gone on with elsewhere, by {self._owners.last()}: the run directory here "
                    f"is behind it; move that away, and --resume=auto restores it from there"
                )
        claimed = self._owners.claim(owner)
        if claimed is None:
            raise _in_use(self._url, self._owners.last())
        self.owner, self._lost = claimed, ""
        self._over = threading.Event()
        self._beat = threading.Thread(target=self._keep_up, name="lease", daemon=True)
        self._beat.start()

    @property
    def token(self) -> int:
        return self.owner.token

    def _refuse_living(self, token: int, say: Callable[[str], None], alone: bool) -> None:
        last = self._owners.read(token)
        if last is not None:
            if last.until:
                return
            if last.is_of_this_machine:
                if not alone and last.pid != os.getpid() and last.is_running:
                    raise _in_use(self._url, last)
                return
        silence, deadline = self._owners.silence(token), time.monotonic() + 2 * self._lease_s
        if silence < self._lease_s:
            say(f"{self._url} was last used by {last or 'an unknown owner'}; waiting whether it still lives")
        while (now := self._owners.silence(token)) < self._lease_s:
            if now < silence or time.monotonic() > deadline:
                raise _in_use(self._url, last)
            silence = now
            time.sleep(min(1.0, self._lease_s / 10))
        say(f"{last or 'an unknown owner'} has not been heard of for {now:.0f} s and counts as dead")

    def _keep_up(self) -> None:
        while not self._over.wait(self._lease_s / 3):
            with suppress(LedgerError, OSError):  # out of reach for a while: what counts is that nobody else came
                if self._superseded():
                    return
                if self._owners.read(self.token) is None:
                    self._lost = f"{self._url} was removed under a running process, which stops; it had been silent"
                    return
                self._owners.write(self.owner)

    def _superseded(self) -> bool:
        if not self._lost and max(self._owners.tokens(), default=0) > self.token:
            last = self._owners.last()
            self._lost = f"{self._url} was taken over by {last or 'another process'}: this process had been silent"
        return bool(self._lost)

    @property
    def lost(self) -> bool:
        """Whether a sign of life has found another owner; asks nobody."""
        return bool(self._lost)

    def check(self) -> None:
        """Raises LedgerError once another has taken over."""
        if self._superseded():
            raise LedgerError(f"{self._lost} for more than {self._lease_s:.0f} s (deadlines.lease_s) and stops")

    def close(self) -> None:
        """Give it back."""
        self._over.set()
        self._beat.join(5)  # it may be waiting for a server
        with suppress(LedgerError, OSError):
            if not self._superseded():
                self._owners.write(replace(self.owner, until=time.time()))


class RunLock:
    """The lock on a run directory: flock where the file system has it, and a lease for where it has not."""

    def __init__(
        self, run_dir: Path, attempt: int = 0, lease_s: float = 30.0, say: Callable[[str], None] = lambda _: None
    ) -> None:
        """Raises LedgerError naming the owner where another process works on the run."""
        self.copies: Lease | None = None
        """Of the storage that the run is copied to, if it is."""
        with saving("the lock", run_dir):
            run_dir.mkdir(parents=True, exist_ok=True)
            self._file = (run_dir / "lock").open("a+")
        try:
            alone = self._flock(run_dir)
            self._lease = Lease(DirectoryStorage(run_dir), this_process(attempt), lease_s, say, alone=alone)
            self._next = run_dir / _key(self._lease.token + 1)
            with saving("the lock", run_dir):
                self._file.seek(0)
                self._file.truncate()
                self._file.write(str(self._lease.owner))
                self._file.flush()
        except BaseException:
            self._file.close()
            raise

    def _flock(self, run_dir: Path) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return False
            self._file.seek(0)
            raise _in_use(str(run_dir), self._file.read().strip()) from None
        return True

    @property
    def owner(self) -> Owner:
        return self._lease.owner

    @property
    def token(self) -> int:
        return self._lease.token

    def check(self) -> None:
        """Raises LedgerError once another process has taken the run over; asked before every write that counts."""
        if self.copies is not None and self.copies.lost:
            self.copies.check()
        if self._next.exists():  # a glance: this is asked for every record
            self._lease.check()

    def close(self) -> None:
        self._lease.close()
        self._file.close()


def _in_use(place: str, owner: Owner | str | None) -> LedgerError:
    return LedgerError(f"{place} is in use by {owner or 'another process'}; two runs never share a directory")


def _key(token: int) -> str:
    return f"owners/{token:06d}.json"


def _encoded(owner: Owner) -> bytes:
    return json.dumps(asdict(owner)).encode()


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
