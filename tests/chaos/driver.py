"""``rondo run`` with one addition: the stages that are under way stand in a file, so that kills can be aimed.

python -m tests.chaos.driver STAGES CONFIG [overrides] [--resume=auto]
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.cli import main
from pipelines.timing import Stopwatch


def tell_stages(file: Path) -> None:
    """Write the names of the stages of every Stopwatch into ``file`` whenever they change."""
    under_way: Counter[str] = Counter()
    timed = Stopwatch.stage

    def tell() -> None:
        partial = file.with_suffix(".partial")
        partial.write_text(" ".join(sorted(+under_way)) or "between")
        os.replace(partial, file)

    @contextmanager
    def stage(self: Stopwatch, name: str, *args: Any) -> Iterator[Any]:
        under_way[name] += 1
        tell()
        try:
            with timed(self, name, *args) as span:
                yield span
        finally:
            under_way[name] -= 1
            tell()

    Stopwatch.stage = stage  # type: ignore[method-assign]


if __name__ == "__main__":
    tell_stages(Path(sys.argv[1]))
    sys.argv = ["rondo", "run", *sys.argv[2:]]
    main()
