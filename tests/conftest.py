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

_RUNS = re.compile(r"def test_\w+\([^)]*\b(finished|stopped)\b")
"""Tests that look at the whole runs that a session makes once."""


class _RunsTogether(LoadFileScheduling):
    """A file is one process's work, and so are all files that look at the session's runs: each is made once."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "runs" if _looks_at_runs(Path(__file__).parents[1] / file) else file


@lru_cache
def _looks_at_runs(file: Path) -> bool:
    return _RUNS.search(file.read_text()) is not None


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return _RunsTogether(config, log) if config.getvalue("dist") == "loadfile" else None
