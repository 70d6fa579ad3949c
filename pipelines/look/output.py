"""Reports on the disk, all or nothing."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from actors.files import replace_file


def write_lines(path: Path, lines: Iterable[str]) -> None:
    replace_file(path, "".join(line + "\n" for line in lines).encode())


def write_json(path: Path, report: Any) -> None:
    """A dataclass as JSON; a number that is none (nan) is null."""
    write_lines(path, [json.dumps(_plain(dataclasses.asdict(report)), indent=1, ensure_ascii=False, allow_nan=False)])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
