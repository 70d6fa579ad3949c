"""For all tests: how long an example takes says something about the machine, not about the code."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

settings.register_profile("rondo", deadline=None)
settings.load_profile("rondo")

_SHARED = {
    "runs": re.compile(r"def test_\w+\([^)]*\b(finished|stopped)\b"),
    "ranks": re.compile(r"def found\(ranks\)"),
}
"""What is made once for several files, and by what their tests say that they look at it."""


class _RunsTogether(LoadFileScheduling):
    """A file is one process's work, and so are all files that look at the same things: each is made once."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return _shared(Path(__file__).parents[1] / file) or file


@lru_cache
def _shared(file: Path) -> str:
    text = file.read_text()
    return next((name for name, looks in _SHARED.items() if looks.search(text)), "")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return _RunsTogether(config, log) if config.getvalue("dist") == "loadfile" else None
