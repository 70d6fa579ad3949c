"""Files that outlive a crash: checksums, fsync, and replacing a file as a whole or not at all."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

_CHUNK = 2**20


@dataclass(frozen=True, slots=True)
class FileSum:
    """What a file held when it was written: enough to tell later that it was cut off or changed."""

    path: str  # relative to the directory it is part of, parts joined by "/"
    bytes: int
    crc32: int

    @classmethod
    def of(cls, path: Path, directory: Path) -> FileSum:
        """Read ``path``, which lies somewhere in ``directory``."""
        crc32, size = checksum(path)
        return cls(path.relative_to(directory).as_posix(), size, crc32)


def checksum(path: Path) -> tuple[int, int]:
    """CRC-32 of a file and its size in bytes."""
    crc32 = size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc32 = zlib.crc32(chunk, crc32)
            size += len(chunk)
    return crc32, size


def sync_file(path: Path) -> None:
    """What ``path`` holds survives a power cut from here on, whichever process of this machine wrote it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """The names in ``path`` survive a power cut from here on."""
    sync_file(path)


def replace_file(path: Path, data: bytes) -> None:
    """Make ``data`` the content of ``path``, durably: a reader sees the old or the new content, never part of one."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_directory(path.parent)
