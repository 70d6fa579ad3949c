"""What of this machine fits a run and what does not, said in about a second and before anything starts.

``refuse_unfit`` stands at the start of every run, so no check may import vLLM, transformers or MLflow:
versions come from package metadata, sizes from file headers, and servers are only asked whether they listen.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from actors import placement
from configs.runs import TrainingConfig
from pipelines.checks import Check, Level, inputs, installation, machine

if TYPE_CHECKING:
    from rich.console import Console


class UnfitError(Exception):
    """This machine cannot hold the run; the message lists every reason with its fix."""


def diagnose(config: TrainingConfig, *, training: bool = True) -> list[Check]:
    """Every check, in the order in which problems are best fixed; without ``training`` no trainer is counted."""
    parameters = inputs.parameters(config)
    checks = [
        installation.python(sys.version_info[:2]),
        *installation.packages(),
        installation.engine(),
        *inputs.model(config),
        *inputs.opponents(config),
        *(inputs.judge(section, rule) for section, rule in inputs.rules(config).items()),
    ]
    address = os.environ.get("RAY_ADDRESS", "")
    checks += [machine.root(config), machine.disk(config), machine.tracking(config)]
    if training and parameters:
        checks.append(machine.disk_forecast(config, inputs.shapes(config), cluster=bool(address)))
    if address:  # then the stages run elsewhere, and the cluster is asked for its resources once it is joined
        return [*checks, machine.cluster(address)]
    checks.append(machine.resources(config, training=training))
    if parameters:
        checks.append(machine.memory(config, parameters, training=training))
        if training:
            checks.append(machine.shared_memory(config, parameters))
    return checks


def refuse_unfit(config: TrainingConfig, *, training: bool = True) -> None:
    """Raise UnfitError naming every failed check and its fix."""
    failed = [check for check in diagnose(config, training=training) if check.level is Level.FAIL]
    if failed:
        lines = [f"{c.name}: {c.detail}; {c.fix}" for c in failed]
        raise UnfitError("this run cannot start here:\n  " + "\n  ".join(lines))


def cluster_shortfalls(
    config: TrainingConfig, cluster_resources: Mapping[str, float], *, training: bool = True
) -> list[str]:
    """What the joined cluster has too little of, one line a resource."""
    return placement.shortfalls(config, cluster_resources, training=training)


def doctor(config: TrainingConfig, console: Console | None = None) -> int:
    """Print every check as a table; returns the exit code, 1 when a check failed."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}
    checks = diagnose(config)
    table = Table("", "check", "found", "what to do", title=f"rondo doctor: {config.run.name}")
    for check in checks:
        # Text, not str: a path or a requirement in brackets is no markup.
        table.add_row(Text(check.level, colours[check.level]), *map(Text, (check.name, check.detail, check.fix)))
    (console or Console(highlight=False)).print(table)
    return int(any(check.level is Level.FAIL for check in checks))
