"""A layout as the simulation takes it."""

from __future__ import annotations

import math

from pipelines.plan.layout import Layout, Planner
from pipelines.plan.pipeline import Pipeline
from preference.admission import AdmissionRules
from preference.admission_rules import Order

_TRAIN_SPREAD = 0.02  # steps of equal work differ by about that


def pipeline(planner: Planner, layout: Layout, steps: int, order: Order = "in_time") -> Pipeline:
    """``steps`` optimizer steps of ``layout``, with the failures that the cluster file states."""
    groups, times, work = layout.groups, planner.times, planner.work
    faults = planner.cluster.reliability
    hours = faults.gpu_mtbf_hours or math.inf
    needs_reference = bool(groups.references)
    return Pipeline(
        rules=AdmissionRules(work.prompts, layout.staleness, order, steps=steps),
        engines=groups.engines,
        token_s=times.decode(groups.engine_gpus),
        slots=max(float(work.candidates), times.slots(groups.engine_gpus)),
        prefill_s=times.prefill(groups.engine_gpus),
        candidates=work.candidates,
        lengths=work.lengths,
        judges=work.judging.slots or groups.judges,
        judge_s=times.judge_seconds(groups.judge_gpus),
        references=groups.references,
        reference_s=times.reference_seconds() if needs_reference else 0.0,
        driver_s=planner.cluster.efficiency.driver_s,
        train_s=times.trainer(groups.ranks).seconds,
        path=layout.path,
        tie_rate=work.tie_rate,
        train_spread=_TRAIN_SPREAD,
        engine_mtbf_s=hours * 3600 / groups.engine_gpus,
        trainer_mtbf_s=hours * 3600 / groups.ranks,
        restart_s=faults.restart_s,
        checkpoint_steps=faults.checkpoint_steps or planner.config.checkpoint.every,
    )
