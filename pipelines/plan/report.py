"""A plan as tables for people and as JSON for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipelines.plan.layout import Layout, Planner
from pipelines.plan.memory import GIB, item_bytes
from pipelines.plan.pipeline import Simulated

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True)
class Report:
    """What ``rondo plan`` found."""

    name: str
    planner: Planner
    configured: Layout | None
    """What the configuration's resources do; None: they name no GPUs."""
    shortfalls: tuple[str, ...]
    """Why that does not fit; then ``configured`` says what it would do if it did."""
    recommended: Layout
    by_staleness: tuple[Layout, ...]
    """The recommended groups with other bounds of staleness."""
    simulated: Simulated | None
    broadcast: Layout | None = None
    """The best layout if weights were broadcast; None where that is no faster, or is what is planned with."""


def overrides(layout: Layout) -> list[str]:
    """The layout as arguments of ``rondo run``."""
    g = layout.groups
    found = [
        f"run.max_staleness={layout.staleness}",
        f"resources.sampler.actors={g.engines}",
        f"resources.sampler.gpus={g.engine_gpus}",
        f"resources.trainer.actors={g.ranks}",
        "resources.trainer.gpus=1",
    ]
    if g.references:
        found += [f"resources.reference.actors={g.references}", "resources.reference.gpus=1"]
    found.append(f"resources.judge.actors={g.judges}")
    if g.judge_gpus:
        found.append(f"resources.judge.gpus={g.judge_gpus}")
    return found


def notes(report: Report) -> list[str]:
    """What the recommended layout leaves unused, and what would help."""
    layout, cluster = report.recommended, report.planner.cluster
    found = []
    used = sum(row.gpus for row in layout.rows)
    if used < cluster.size:
        found.append(f"{cluster.size - used} of {cluster.size} GPUs would only make it slower, or no faster")
    if report.broadcast is not None:
        found.append(
            f"weights by {layout.path.transport} take {layout.path.seconds:.3g} s of a step; a broadcast between GPUs "
            f"(transport: broadcast in the cluster file shows it) would make it {report.broadcast.period:.3g} s a step"
        )
    return found


# -- for people --------------------------------------------------------------------------------------------------------


def show(report: Report, console: Console) -> None:
    """Print it."""
    planner, arch, work = report.planner, report.planner.arch, report.planner.work
    item = item_bytes(planner.config)
    pools = ", ".join(f"{p.nodes} x {p.gpus} {p.name}" for p in planner.cluster.pools)
    console.print(
        f"{report.name}: {arch.family}, {arch.parameters / 1e9:,.3f} B parameters, "
        f"{arch.kv_bytes(1, item) / 1024:,.0f} KiB of KV cache a token; on {pools}"
    )
    console.print(
        f"a step: {work.prompts} prompts of {work.prompt_tokens:.0f} tokens x {work.candidates} responses of "
        f"{work.lengths.cut_mean:.0f} (spread {work.lengths.spread:g}, at most {work.lengths.cap}), "
        f"{work.pairs:.0f} pairs; judge: {work.judging.note}"
    )
    if report.configured is not None:
        _layout(report.configured, "as configured", console)
        for line in report.shortfalls:
            console.print(f"does not fit: {line}", style="bold red")
    _layout(report.recommended, "recommended", console)
    for note in notes(report):
        console.print(f"note: {note}")
    _staleness(report.by_staleness, console)
    console.print("rondo run ... " + " ".join(overrides(report.recommended)))
    if report.simulated is not None:
        _simulation(report.simulated, report.recommended, console)


def _layout(layout: Layout, title: str, console: Console) -> None:
    from rich.table import Table

    table = Table(
        "group", "actors", "GPUs", "memory a GPU, GiB", "s a step", "busy", "bounded by",
        title=f"{title}, max_staleness = {layout.staleness}", title_justify="left",
    )  # fmt: skip
    for row in layout.rows:
        memory = f"{row.memory.used / GIB:.1f} of {row.memory.available / GIB:.1f}" if row.memory else ""
        gpus = str(row.gpus) if row.gpus else ""
        busy = f"{layout.utilisation(row):.0%}"
        table.add_row(row.name, str(row.actors), gpus, memory, f"{row.seconds:.3g}", busy, row.limit)
    console.print(table)
    price = f", {layout.price_per_1000_pairs:.2f} per 1,000 pairs" if layout.price_per_1000_pairs else ""
    console.print(
        f"{layout.period:.3g} s a step, {layout.pairs_per_s:.3g} pairs/s{price}; bottleneck: {layout.bottleneck}"
    )


def _staleness(layouts: tuple[Layout, ...], console: Console) -> None:
    from rich.table import Table

    table = Table("max_staleness", *(str(x.staleness) for x in layouts), title="the same groups", title_justify="left")
    table.add_row("s a step", *(f"{x.period:.3g}" for x in layouts))
    table.add_row("pairs/s", *(f"{x.pairs_per_s:.3g}" for x in layouts))
    console.print(table)


def _simulation(found: Simulated, layout: Layout, console: Console) -> None:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found.utilisation.items())
    waits = ", ".join(
        f"{name} {share:.0%}" for name, share in sorted(found.waits.items(), key=lambda w: -w[1]) if share
    )
    ages = ", ".join(f"{age}: {count / sum(found.ages.values()):.0%}" for age, count in found.ages.items())
    console.print(
        f"simulated {found.steps} steps ({found.events:,} events): {found.period:.3g} s a step "
        f"({found.period / layout.period - 1:+.0%} against the arithmetic), {found.pairs_per_s:.3g} pairs/s"
    )
    console.print(f"  busy: {shares}")
    console.print(f"  the trainer waits for: {waits or 'nothing'}")
    console.print(f"  ages of trained prompts: {ages}; too old: {found.stale}; sampled again: {found.restarted}; "
                  f"failures: {found.failures or 'none'}")  # fmt: skip


# -- for programs ------------------------------------------------------------------------------------------------------


def as_json(report: Report) -> dict[str, Any]:
    """Sizes in bytes, times in seconds."""
    planner, work = report.planner, report.planner.work
    return {
        "run": report.name,
        "model": {
            "family": planner.arch.family,
            "parameters": planner.arch.parameters,
            "kv_bytes_per_token": planner.arch.kv_bytes(1, item_bytes(planner.config)),
        },
        "workload": {
            "prompts": work.prompts,
            "candidates": work.candidates,
            "prompt_tokens": work.prompt_tokens,
            "response_tokens": work.lengths.cut_mean,
            "pairs": work.pairs,
            "judge": work.judging.note,
        },
        "cluster": planner.cluster.model_dump(mode="json"),
        "configured": None if report.configured is None else _layout_json(report.configured),
        "shortfalls": list(report.shortfalls),
        "recommended": {**_layout_json(report.recommended), "overrides": overrides(report.recommended)},
        "by_staleness": [
            {"max_staleness": x.staleness, "seconds_per_step": x.period, "pairs_per_s": x.pairs_per_s}
            for x in report.by_staleness
        ],
        "notes": notes(report),
        "simulated": None if report.simulated is None else asdict(report.simulated),
    }


def _layout_json(layout: Layout) -> dict[str, Any]:
    return {
        "max_staleness": layout.staleness,
        "seconds_per_step": layout.period,
        "pairs_per_s": layout.pairs_per_s,
        "price_per_1000_pairs": layout.price_per_1000_pairs,
        "bottleneck": layout.bottleneck,
        "way_seconds": layout.way,
        "weights": asdict(layout.path),
        "groups": {
            row.name: {
                "actors": row.actors,
                "gpus": row.gpus,
                "seconds_per_step": row.seconds,
                "busy": layout.utilisation(row),
                "bounded_by": row.limit,
                "memory": None if row.memory is None else {**dict(row.memory.parts), "available": row.memory.available},
            }
            for row in layout.rows
        },
    }
