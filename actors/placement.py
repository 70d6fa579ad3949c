"""What a run asks of a cluster: pure arithmetic over the configuration, tested without a cluster."""

from __future__ import annotations

from collections.abc import Mapping

from configs.runs import TrainingConfig
from configs.schema import Group

_TOLERANCE = 1e-9


def by_stage(config: TrainingConfig, *, training: bool = True) -> dict[str, dict[str, float]]:
    """Resources each stage reserves: {"sampler": {"CPU": 0.25, ...}, ...}. A judge pool counts once a judge.

    An evaluation outside a run has neither trainer nor opponents: ``training=False``.
    """
    stages = {}
    for stage, groups in config.groups.items():
        if stage in ("trainer", "opponents") and not training:
            continue
        total: dict[str, float] = {}
        for group in groups:
            for name, amount in _total(group).items():
                total[name] = total.get(name, 0.0) + amount
        stages[stage] = total
    return {**stages, "data_cpus": {"CPU": config.resources.data_cpus}}


def requested(config: TrainingConfig, *, training: bool = True) -> dict[str, float]:
    """Total of every resource the run reserves at once."""
    total: dict[str, float] = {}
    for stage in by_stage(config, training=training).values():
        for name, amount in stage.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def bundles(config: TrainingConfig, *, training: bool = True) -> list[dict[str, float]]:
    """What each actor of the run reserves: what has to fit on one node."""
    stages = [s for s in config.groups if training or s != "trainer"]
    groups = [group for stage in stages for group in config.groups[stage]]
    return [each for group in groups for each in [_each(group)] * group.actors if each]


def shortfalls(config: TrainingConfig, available: Mapping[str, float], *, training: bool = True) -> list[str]:
    """One line a resource that ``available`` does not cover: what is needed, what is there, who wants it, the fix."""
    lines = []
    for name, needed in sorted(requested(config, training=training).items()):
        present = available.get(name, 0.0)
        if needed > present + _TOLERANCE:
            wanted = ", ".join(
                f"{s} {r[name]:g}" for s, r in by_stage(config, training=training).items() if r.get(name)
            )
            lines.append(
                f"{name}: {needed:g} needed, {present:g} present, {needed - present:g} missing ({wanted}); "
                f"lower resources.<stage>.{_field(name)} or .actors, or add nodes"
            )
    return lines


def _total(group: Group) -> dict[str, float]:
    return {name: amount * group.actors for name, amount in _each(group).items()}


def _each(group: Group) -> dict[str, float]:
    each = {"CPU": group.cpus, "GPU": group.gpus, **group.custom}
    return {name: amount for name, amount in each.items() if amount}


def _field(resource: str) -> str:
    return {"CPU": "cpus", "GPU": "gpus"}.get(resource, f"custom.{resource}")
