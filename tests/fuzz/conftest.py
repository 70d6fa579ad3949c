"""What the fuzz tests have in common, and a summary of what they tried."""

from __future__ import annotations

import pytest

from tests.fuzz import trial


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    tried = trial.accepted + trial.refused
    if not tried:
        return
    terminalreporter.write_sep("-", f"{trial.inputs:,} hostile inputs, RONDO_FUZZ_SEED={trial.SEED}")
    for what, times in sorted(tried.items()):
        terminalreporter.write_line(f"{what:36} {times:8,} tried, {trial.accepted[what]:8,} accepted")
