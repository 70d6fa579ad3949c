"""``rondo plan``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from configs.runs import RunConfig
    from pipelines.plan.cluster import Cluster
    from pipelines.plan.report import Report

_SHOWN = (0, 1, 2, 4, 8)


@click.command("plan")
@click.argument("config", type=click.Path(dir_okay=False))
@click.option("--cluster", "spec", required=True, type=click.Path(dir_okay=False), help="YAML file of the cluster.")
@click.option(
    "--staleness", type=click.IntRange(0, 64), help="Plan with this max_staleness.  [default: what is worth it]"
)
@click.option("--simulate", is_flag=True, help="Also simulate the recommended layout, event by event.")
@click.option("--steps", type=click.IntRange(min=2), default=200, show_default=True, help="Steps of the simulation.")
@click.option("--json", "out", type=click.Path(dir_okay=False), help="Also write everything to this file.")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
def plan(
    config: str,
    spec: str,
    staleness: int | None,
    simulate: bool,
    steps: int,
    out: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Say what CONFIG will do on a cluster: memory, times, bottleneck, group sizes, cost. Needs no GPU.

    Exits with 1 where the groups of CONFIG do not fit the cluster.
    """
    from rich.console import Console

    from configs.loading import load_config
    from configs.runs import RunConfig
    from pipelines.failures import is_expected
    from pipelines.plan.cluster import read_cluster
    from pipelines.plan.report import as_json, show

    try:
        report = make(
            load_config(RunConfig, config, overrides), read_cluster(spec), staleness, steps if simulate else 0
        )
    except Exception as error:
        if not is_expected(error):
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    show(report, Console(highlight=False, soft_wrap=True))
    if out:
        Path(out).write_text(json.dumps(as_json(report), indent=1) + "\n", encoding="utf-8")
    sys.exit(int(bool(report.shortfalls)))


def make(config: RunConfig, cluster: Cluster, staleness: int | None = None, steps: int = 0) -> Report:
    """The plan; ``steps`` > 0: and a simulation of so many. Raises PlanError where nothing fits."""
    from pipelines.plan.architecture import read_architecture
    from pipelines.plan.layout import Planner, groups_of
    from pipelines.plan.report import Report
    from pipelines.plan.scenario import pipeline
    from pipelines.plan.search import best_layout
    from pipelines.plan.simulate import Simulation
    from pipelines.plan.workload import workload

    planner = Planner(read_architecture(config.model.path), config, cluster, workload(config, cluster))
    groups = groups_of(config, planner.work)
    other = Planner(planner.arch, config, cluster.model_copy(update={"transport": "broadcast"}), planner.work)
    recommended = best_layout(planner, staleness)
    broadcast = best_layout(other, staleness)
    return Report(
        name=config.run.name,
        planner=planner,
        configured=planner.layout(groups, config.run.max_staleness) if groups else None,
        shortfalls=tuple(planner.shortfalls(groups)) if groups else (),
        recommended=recommended,
        by_staleness=tuple(planner.layout(recommended.groups, k) for k in _SHOWN),
        broadcast=broadcast if broadcast.period < 0.95 * recommended.period else None,
        simulated=Simulation(pipeline(planner, recommended, steps)).run() if steps else None,
    )
