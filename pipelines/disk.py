"""What a run takes on the disk and in shared memory."""

from __future__ import annotations

from pathlib import Path

from preference.types import content_id

SHARED = Path("/dev/shm")


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a directory. Links are not followed; what vanishes meanwhile is nothing."""
    total = 0
    for file in (path, *path.rglob("*")) if path.is_dir() and not path.is_symlink() else (path,):
        try:
            if file.is_file() or file.is_symlink():
                total += file.lstat().st_size
        except OSError:
            continue
    return total


def shared_memory_of(run_dir: Path) -> list[Path]:
    """Published weights of a run that lie in this machine's shared memory, by whatever path it was started."""
    names = {content_id(str(path)) for path in (run_dir, run_dir.absolute(), run_dir.resolve())}
    return sorted(path for name in names for path in SHARED.glob(f"rondo-{name}-*"))
