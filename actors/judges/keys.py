"""API keys: from the judge node's own environment or a file of its owner's, and nowhere else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from actors.judges.errors import JudgeError
from configs.judges import HttpJudge

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_key(judge: HttpJudge) -> str:
    """The key of ``judge``; empty where it needs none. Raises JudgeError, which never holds the key."""
    if judge.api_key_env:
        key = os.environ.get(judge.api_key_env, "").strip()
        if not key:
            raise JudgeError(
                f"judge.api_key_env = {judge.api_key_env}: the environment of the judge's node has no such variable; "
                f"set it where Ray is started on that node, or use judge.api_key_file"
            )
        return key
    return _from_file(Path(judge.api_key_file).expanduser()) if judge.api_key_file else ""


def _from_file(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)  # of what is read, not of what lies there by then
            if mode & _OTHERS:
                raise JudgeError(
                    f"judge.api_key_file {path} has mode {mode:04o}: others than its owner may use the key; "
                    f"run: chmod 600 {path}"
                )
            key = file.read().strip()
    except OSError as error:
        raise JudgeError(f"judge.api_key_file {path} on the judge's node: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise JudgeError(f"judge.api_key_file {path} is not text") from None
    if not key or not key.isprintable() or not key.isascii():
        raise JudgeError(f"judge.api_key_file {path} must hold one line with the key, and nothing else")
    return key
