"""What a run reserves from Ray, stage by stage, against what there is. Pure arithmetic: Ray itself is not needed.

Ray queues an actor it cannot place for as long as it takes, so a run that does not fit would hang; these sums turn
that into a message before anything starts.
"""

from __future__ import annotations

from collections.abc import Mapping

from configs.schema import Group, RunConfig

_TOLERANCE = 1e-9  # sums of fractions are not exact: 3 x 0.1 > 0.3


def by_stage(config: RunConfig) -> dict[str, dict[str, float]]:
    """Resources of every stage, ``{"sampler": {"CPU": 0.25}, ...}``; what a stage does not use is left out."""
    groups = config.resources
    stages = {
        "sampler": _total(groups.sampler),
        "judge": _total(groups.judge, judges(config)),  # each judge of the run has a pool of its own
        "reference": _total(groups.reference),
        "trainer": _total(groups.trainer),
        "data": {"CPU": groups.data_cpus},
    }
    return {stage: {name: amount for name, amount in uses.items() if amount} for stage, uses in stages.items()}


def requested(config: RunConfig) -> dict[str, float]:
    """Total of every resource the run holds at once: "CPU", "GPU" and the custom ones."""
    totals: dict[str, float] = {}
    for uses in by_stage(config).values():
        for name, amount in uses.items():
            totals[name] = totals.get(name, 0.0) + amount
    return totals


def judges(config: RunConfig) -> int:
    """How many judges the run has, and so how many judge pools."""
    return 1 + (config.evaluation.judge is not None)


def shortfalls(config: RunConfig, available: Mapping[str, float]) -> list[str]:
    """One line for every resource of which there is not enough; none when the run fits.

    A line names the resource, what is needed (and by which stage), present and missing, and the config fields that
    change it.
    """
    stages = by_stage(config)
    lines = []
    for name, need in sorted(requested(config).items()):
        present = available.get(name, 0.0)
        if need - present <= _TOLERANCE:
            continue
        takers = {stage: uses[name] for stage, uses in stages.items() if name in uses}
        shares = ", ".join(f"{stage} {_number(amount)}" for stage, amount in takers.items())
        lines.append(
            f"{name}: {_number(need)} needed ({shares}), {_number(present)} present, "
            f"{_number(need - present)} missing; {_fix(name, takers)}"
        )
    return lines


def _total(group: Group, pools: int = 1) -> dict[str, float]:
    each = {"CPU": group.cpus, "GPU": group.gpus, **group.custom}
    return {name: amount * group.actors * pools for name, amount in each.items()}


def _fix(name: str, takers: Mapping[str, float]) -> str:
    """The fields that decide how much of ``name`` is taken, the greediest first: lowering helps most there."""
    field = {"CPU": "cpus", "GPU": "gpus"}.get(name, f"custom.{name}")
    fields = []
    for stage in sorted(takers, key=lambda s: -takers[s]):
        if stage == "data":
            fields.append("resources.data_cpus")
        else:
            fields.append(f"resources.{stage}.{field} or resources.{stage}.actors")
    more = f"more {name}s" if name in ("CPU", "GPU") else f"nodes started with --resources='{{\"{name}\": ...}}'"
    return f"lower {', '.join(fields)}; or add {more}"


def _number(amount: float) -> str:
    return f"{amount:.4f}".rstrip("0").rstrip(".")
