"""One attempt at a run: checks, run directory, cluster, actors, loop, export; and taking it all down again."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from actors.judges.rule import RuleJudgePool
from actors.nodes import blind_nodes
from actors.pool import StageFailed
from actors.quiet import quiet_driver
from actors.reference import ReferencePool
from actors.sampler import SamplerPool
from actors.trainer_group import TrainerGroup
from configs.loading import ConfigError, config_hash, differing_fields, scientific
from configs.schema import RunConfig
from pipelines.doctor import cluster_shortfalls, refuse_unfit
from pipelines.export import export_published
from pipelines.heldout import HeldOut
from pipelines.ledger import Ledger, LedgerError, RunRecord, complete_checkpoints, read_record, write_record
from pipelines.online import OnlineLoop, Stages
from pipelines.progress import Progress
from pipelines.prompts import PromptError, PromptSet, check_file, load_prompts, overlapping
from pipelines.timing import Stopwatch
from pipelines.tracking import Tracker
from preference.reports import EvalReport, StepReport
from preference.types import Prompt, Version, content_id

ResumeMode = Literal["never", "auto", "must"]


class Watchers:
    """Progress display and MLflow behind the loop's one Observer; remembers the last step that was logged."""

    def __init__(self, progress: Progress, tracker: Tracker, run_dir: Path, record: RunRecord, steps: int) -> None:
        self._progress, self._tracker, self._run_dir, self._record = progress, tracker, run_dir, record
        self._steps = steps
        self.last_evaluation: EvalReport | None = None

    def stage(self, step: int, name: str, done: int, total: int, tokens: int) -> None:
        self._progress.stage(step, name, done, total, tokens)

    def step_done(self, report: StepReport) -> None:
        self._progress.step_done(report, self._steps)
        if report.step > self._record.logged_step:  # a replayed step is in MLflow already
            self._tracker.log_step(report)
            self._record = replace(self._record, logged_step=report.step)
            write_record(self._run_dir, self._record)

    def evaluated(self, report: EvalReport) -> None:
        self.last_evaluation = report
        self._tracker.log_eval(report)
        self._progress.evaluated(report)

    def message(self, text: str) -> None:
        self._progress.message(text)


def open_run(config: RunConfig, resume: ResumeMode) -> tuple[Path, RunRecord]:
    """Decide whether this is a new run or a later attempt; raises LedgerError naming the differing fields."""
    run_dir = Path(config.run.root) / config.run.name
    old = read_record(run_dir) if run_dir.exists() else None
    fields = scientific(config)
    if old is None:
        if resume == "must":
            raise LedgerError(f"--resume=must, but {run_dir} holds no run")
        if run_dir.exists() and any(run_dir.iterdir()):
            raise LedgerError(f"{run_dir} exists and is not a run; choose another run.name or run.root")
        return run_dir, RunRecord(config_hash(config), fields, "", 1, 0)
    if resume == "never":
        raise LedgerError(
            f"run directory {run_dir} exists; go on with --resume=auto, or choose another run.name "
            f"(e.g. run.name={config.run.name}-2)"
        )
    if old.config_hash != config_hash(config):
        differences = "\n  ".join(differing_fields(old.fields, fields))
        raise LedgerError(f"{run_dir} was started with another configuration; it differs in\n  {differences}")
    return run_dir, replace(old, attempts=old.attempts + 1)


def check_inputs(config: RunConfig) -> None:
    """Everything that can be refused before the long work: machine, model, prompt files."""
    refuse_unfit(config)
    train, heldout = check_file(config.prompts.train), check_file(config.prompts.heldout)
    shared = overlapping(train, heldout)
    if shared:
        raise PromptError(
            f"{len(shared)} held-out prompts also stand in {config.prompts.train}: {', '.join(shared[:5])}; "
            f"a win rate on them would not be held out"
        )
    if len(heldout) < config.evaluation.prompts:
        raise ConfigError(
            f"evaluation.prompts = {config.evaluation.prompts}, but {config.prompts.heldout} holds {len(heldout)}: "
            f"lower evaluation.prompts or add prompts"
        )


async def run_online(config: RunConfig, resume: ResumeMode, progress: Progress) -> EvalReport | None:
    """The whole attempt. Returns the final evaluation."""
    check_inputs(config)
    run_dir, record = open_run(config, resume)
    ledger = Ledger(run_dir)
    quiet_driver(run_dir / "logs" / "driver.log")
    status = "FAILED"
    tracker: Tracker | None = None
    try:
        tracker = Tracker.open(config, run_dir, record.mlflow_run or None, warn=progress.warning)
        tracker.log_prompts(config.prompts.train, config.prompts.heldout)
        record = replace(record, mlflow_run=tracker.run_id)
        write_record(run_dir, record)
        watchers = Watchers(progress, tracker, run_dir, record, config.run.steps)
        join_cluster(config)
        quiet_driver(run_dir / "logs" / "driver.log")  # again: libraries put up handlers when imported
        refuse_invisible(run_dir)
        await _attempt(config, run_dir, record, ledger, watchers, progress, tracker)
        status = "FINISHED"
        return watchers.last_evaluation
    except (KeyboardInterrupt, asyncio.CancelledError):
        status = "KILLED"
        raise
    finally:
        if tracker is not None:
            tracker.finish(status)
        ledger.close()


def refuse_invisible(run_dir: Path) -> None:
    """Raise LedgerError if a node of the cluster does not see the run directory: checkpoints would be lost there."""
    if blind := blind_nodes(run_dir):
        raise LedgerError(
            f"run.root = {run_dir.parent} is not visible from {', '.join(blind)} as it is here: checkpoints and "
            f"weights pass through it; set run.root to a directory that all nodes share"
        )


async def _attempt(
    config: RunConfig,
    run_dir: Path,
    record: RunRecord,
    ledger: Ledger,
    watchers: Watchers,
    progress: Progress,
    tracker: Tracker,
) -> None:
    checkpoints = complete_checkpoints(run_dir)
    done, checkpoint = checkpoints[-1] if checkpoints else (0, Path())
    attempt = f"{config.run.name}-attempt-{record.attempts}"
    log_dir = run_dir / "logs"
    weights_dir: Path | None = None
    # Every actor starts at once; prompts are read and tokenised while engines come up.
    sampler = SamplerPool(config, log_dir)
    judges = [RuleJudgePool(config.judge, config, log_dir, "judge")]
    if config.evaluation.judge is not None:
        judges.append(RuleJudgePool(config.evaluation.judge, config, log_dir, "second-judge"))
    reference = ReferencePool(config, log_dir)
    trainer = TrainerGroup(config, run_dir, attempt, str(checkpoint) if checkpoints else "")
    try:
        progress.message("starting: vLLM engines, judges, reference pool, ZeRO-3 trainer; reading prompts")
        loading = asyncio.to_thread(load_all_prompts, config)
        prompts, heldout_prompts, too_long = await loading
        if too_long:
            progress.message(f"{len(too_long)} prompts are too long and left out: {', '.join(too_long[:5])}")
        nodes = await sampler.ready()
        await reference.ready()
        for judge in judges:
            await judge.ready()
        nodes += await trainer.ready()
        weights_dir = _weights_dir(config, run_dir, attempt, nodes)
        heldout = HeldOut(config, heldout_prompts, sampler, judges, reference, ledger, watchers)
        stages = Stages(sampler, judges[0], reference, trainer)
        version = Version(record.attempts - 1, 0)
        loop = OnlineLoop(config, prompts, heldout, stages, ledger, watchers, weights_dir, version)
        await heldout.baseline()
        if checkpoints:
            progress.message(f"resuming after step {done} from {checkpoint}")
            await loop.publish(Version(record.attempts - 1, done), Stopwatch())
        await loop.run(done)
        _finish(config, run_dir, weights_dir, loop.version, watchers, progress, tracker)
    finally:
        await trainer.close()
        sampler.close()
        reference.close()
        for judge in judges:
            judge.close()
        if weights_dir is not None:
            shutil.rmtree(weights_dir, ignore_errors=True)


def load_all_prompts(config: RunConfig) -> tuple[PromptSet, list[Prompt], tuple[str, ...]]:
    files = [config.prompts.train, config.prompts.heldout]
    train, heldout = load_prompts(files, config.model, config.prompts, config.resources.data_cpus)
    ids = sorted(heldout.prompts)
    random.Random(content_id("heldout", config.run.seed)).shuffle(ids)
    chosen = [heldout.prompts[i] for i in ids[: config.evaluation.prompts]]
    return train, chosen, train.too_long + heldout.too_long


def _weights_dir(config: RunConfig, run_dir: Path, attempt: str, nodes: list[str]) -> Path:
    """Shared memory where trainer and samplers share a node, else the run directory, which every node sees."""
    transport = config.weights.transport
    if transport == "auto":
        transport = "shm" if len(set(nodes)) == 1 else "filesystem"
    elif transport == "shm" and len(set(nodes)) > 1:
        raise ConfigError(
            f"weights.transport = shm, but trainer and samplers run on {len(set(nodes))} nodes; "
            f"use weights.transport=filesystem"
        )
    if transport == "shm":
        return Path("/dev/shm") / f"rondo-{content_id(str(run_dir))}-{attempt}"
    return run_dir / "weights"


def _finish(
    config: RunConfig,
    run_dir: Path,
    weights_dir: Path,
    version: Version,
    watchers: Watchers,
    progress: Progress,
    tracker: Tracker,
) -> None:
    published = weights_dir / f"weights-{version}"
    if not published.exists():
        progress.warning("no step found a pair to train on: the model is unchanged and nothing is exported")
        return
    model = export_published(published, Path(config.model.path), run_dir / "model")
    tracker.log_model(model, config.tracking.registered_model or config.run.name)
    if watchers.last_evaluation is not None:
        progress.final(watchers.last_evaluation, model, tracker.ui_command())


def join_cluster(config: RunConfig, *, training: bool = True) -> None:
    """Join the cluster of RAY_ADDRESS, or start a cluster of one."""
    import ray
    import ray.data  # puts up its log handlers now, before those are taken down

    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if not os.environ.get("RAY_ADDRESS"):
        # Only prompts, candidates and batches pass through the store: megabytes.
        options |= {"object_store_memory": 512 * 2**20, "include_dashboard": False}
    try:
        ray.init(**options)
    except ConnectionError as error:
        raise StageFailed(f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}: no cluster answers there: {error}") from None
    missing = cluster_shortfalls(config, ray.cluster_resources(), training=training)
    if missing:
        raise StageFailed("the cluster cannot hold this run:\n  " + "\n  ".join(missing))
