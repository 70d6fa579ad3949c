"""Append-only journals: one record a line, committed by fsync, each line marked with the owner that wrote it.

A line is ``<crc32>.<token> <json>``; the checksum covers everything after the point. Tokens grow from owner to owner of
the run (``pipelines.ledger.lock``): a line whose token is smaller than one before it was written by an owner that had
been declared dead, and does not count. Lines without a token are of the time before there were any.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


class LedgerError(RuntimeError):
    """The run directory is in use, damaged, cannot be written, or belongs to another configuration."""


@contextmanager
def saving(what: str, path: Path) -> Iterator[None]:
    """Turn the disk's refusals into a LedgerError that names what could not be written, where, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            fix = "free space there and go on with --resume=auto; what was committed before is whole"
        elif error.errno in _CLOSED:
            fix = "make it writable, or set run.root to a directory that is"
        else:
            fix = "see that the disk is there and sound, then go on with --resume=auto"
        raise LedgerError(f"{what} cannot be written to {path}: {error.strerror or error}; {fix}") from error


@dataclass(frozen=True, slots=True)
class Line:
    """A record and where it stands: 1-based line ``number``, and the ``token`` of the owner that wrote it (0: none)."""

    number: int
    token: int
    record: dict[str, Any]


def encode_line(record: Mapping[str, Any], token: int) -> bytes:
    body = b"%d %s" % (token, json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode())
    return b"%08x.%s\n" % (zlib.crc32(body), body)


def decode(line: bytes) -> tuple[int, dict[str, Any]] | None:
    """(token, record) of a line; None where it is damaged."""
    line = line.rstrip(b"\n")
    head, _, body = line.partition(b" ")
    checksum, point, token = head.partition(b".")
    try:
        if int(checksum, 16) != zlib.crc32(line.partition(b".")[2] if point else body):
            return None
        record = json.loads(body)
        return (int(token) if point else 0, record) if isinstance(record, dict) else None
    except (ValueError, RecursionError):
        return None


def decode_line(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None where it is damaged."""
    found = decode(line)
    return found[1] if found else None


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a journal that count. What a writer is in the middle of, the last line without its end, is left out.

    Raises LedgerError naming file and line where one is damaged; an absent file has no lines.
    """
    highest = 0
    try:
        lines = path.open("rb")
    except FileNotFoundError:
        return
    with lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            found = decode(line)
            if found is None:
                raise LedgerError(f"{path}:{number}: damaged record (checksum mismatch)")
            token, record = found
            if token >= highest:
                highest = token
                yield Line(number, token, record)


class Journal:
    """A journal being written. A torn last line (the process died writing it) is cut off on opening."""

    def __init__(self, path: Path, token: int = 0, check: Callable[[], None] = lambda: None) -> None:
        """``check`` raises where this process is not the run's owner any more; it is asked before every write."""
        self._path, self._token, self._check = path, token, check
        self._pending = bytearray()
        self._broken = False
        with saving("the journal", path):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            self.cut_bytes = self._cut_torn_tail()
        self._written = self.committed = os.fstat(self._file).st_size

    def append(self, record: Mapping[str, Any]) -> None:
        self._pending += encode_line(record, self._token)

    def flush(self) -> None:
        """Everything appended so far survives the death of this process.

        Raises LedgerError where the disk refuses; the file then ends with the last record that was whole before.
        """
        if self._broken:
            raise LedgerError(f"{self._path}: a write has failed before; nothing more is written in this attempt")
        if not self._pending:
            return
        try:
            self._check()
            with saving("the journal", self._path):
                self._write()
        except LedgerError:
            self._broken = True
            raise

    def _write(self) -> None:
        data = memoryview(bytes(self._pending))
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._written)
            raise
        self._written += len(self._pending)
        self._pending.clear()

    def commit(self) -> None:
        """Everything appended so far survives a power cut from here on. Raises LedgerError as ``flush``."""
        self.flush()
        if self.committed < self._written:
            self._broken = True  # what a failed fsync has lost is never known
            with saving("the journal", self._path):
                os.fsync(self._file)
            self._broken = False
            self.committed = self._written

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.flush()
        for line in read_lines(self._path):
            yield line.record

    def close(self) -> None:
        """Commit and close; after a failed write only close."""
        try:
            if not self._broken:
                self.commit()
        finally:
            os.close(self._file)

    def _cut_torn_tail(self) -> int:
        data = self._path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            os.ftruncate(self._file, end)
        return len(data) - end
