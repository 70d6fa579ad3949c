"""Held-out comparison of two models: the same prompts, judges and statistics as inside a run."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from configs.runs import RunConfig
from pipelines.heldout import HeldOut
from pipelines.progress import Progress
from preference.reports import EvalReport, StepReport, TrainMetrics
from preference.types import Version


class _Shown:
    """The display as the Observer of an evaluation outside a run."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def stage(self, step: int, name: str, done: int, total: int, tokens: int) -> None:
        self._progress.stage(step, name, done, total, tokens)

    def step_done(self, report: StepReport) -> None:
        raise AssertionError("an evaluation takes no steps")

    def evaluated(self, report: EvalReport) -> None:
        self._progress.evaluated(report)

    def heldout(self, step: int, metrics: TrainMetrics) -> None:
        raise AssertionError("an evaluation has no held-out items")

    def message(self, text: str) -> None:
        self._progress.message(text)


async def evaluate_models(config: RunConfig, model: Path, against: Path, progress: Progress) -> EvalReport:
    """Sample both models' answers in turn on one set of samplers' resources, judge, and print the win rate.

    KL is of ``model`` to ``against``.
    """
    from actors.faults import Faults
    from actors.quiet import quiet_driver
    from actors.reference import ReferencePool
    from actors.sampler import SamplerPool
    from pipelines.cluster import join_cluster
    from pipelines.doctor import refuse_unfit
    from pipelines.judging.judges import outside_a_run, start_judges
    from pipelines.ledger.ledger import Ledger
    from pipelines.online import load_all_prompts

    old = config.model_copy(update={"model": config.model.model_copy(update={"path": str(against.resolve())})})
    new = config.model_copy(update={"model": config.model.model_copy(update={"path": str(model.resolve())})})
    refuse_unfit(old, training=False)
    refuse_unfit(new, training=False)
    with TemporaryDirectory(prefix="rondo-evaluate-") as scratch:
        logs = Path(scratch) / "logs"
        quiet_driver(logs / "driver.log")
        join_cluster(config, training=False)
        quiet_driver(logs / "driver.log")
        faults = Faults(config.recovery, lambda fault: progress.warning(f"{fault.cause}; replaced"))
        judges = start_judges(outside_a_run(config), Path(scratch), logs, progress, faults)
        ledger = Ledger(Path(scratch))
        reference = ReferencePool(old, Path(scratch), logs, faults)
        shown = _Shown(progress)
        sampler = SamplerPool(old, logs, faults)
        try:
            _, prompts, _ = load_all_prompts(old)
            await sampler.ready()
            await reference.ready()
            heldout = HeldOut(config, prompts, sampler, judges, reference, ledger, shown)
            await heldout.baseline()
            sampler.close()
            sampler = SamplerPool(new, logs, faults)
            await sampler.ready()
            heldout.answer_with(sampler)
            report = await heldout.evaluate(1, Version(0, 1))
            progress.compared(report, model, against)
            return report
        finally:
            sampler.close()
            reference.close()
            for judge in judges:
                judge.close()
            ledger.close()
