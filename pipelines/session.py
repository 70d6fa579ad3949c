"""One attempt at a run, whatever kind: run directory, ledger, MLflow, cluster; the loop inside; export at the end."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from actors.faults import Fault, Faults
from actors.quiet import quiet_driver
from actors.reference import ReferencePool
from actors.stream import TrainerLost
from actors.trainer_group import TrainerGroup
from actors.weights import version_directory
from configs.loading import ConfigError, config_hash, differing_fields, scientific
from configs.runs import RunConfig, TrainingConfig
from pipelines.cluster import connect, join_cluster, refuse_invisible
from pipelines.export import export_published
from pipelines.facts import cluster_facts
from pipelines.ledger.copies import LAST_COPIES_S, Copies, open_copies
from pipelines.ledger.events import AttemptBegan, AttemptEnded, Began, Survived
from pipelines.ledger.keeping import refuse_unmeasured
from pipelines.ledger.ledger import Ledger, LedgerError, RunRecord, read_record, write_record
from pipelines.ledger.record import write_configuration
from pipelines.ledger.restore import restore_run
from pipelines.loop import Loop, Stages
from pipelines.nodes import nodes_arrived
from pipelines.progress import Progress
from pipelines.stages import Consumer, Evaluator, Source
from pipelines.timing import Stopwatch
from pipelines.tracking import Tracker
from pipelines.watchers import Watchers
from preference.reports import EvalReport
from preference.types import Version, content_id

ResumeMode = Literal["never", "auto", "must"]


def open_run(config: TrainingConfig, resume: ResumeMode) -> tuple[Path, RunRecord]:
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
    if resume == "never" and old.mlflow_run:  # without one its first attempt ended before it had begun
        raise LedgerError(
            f"run directory {run_dir} exists; go on with --resume=auto, or choose another run.name "
            f"(e.g. run.name={config.run.name}-2)"
        )
    if old.config_hash != config_hash(config):
        differences = "\n  ".join(differing_fields(old.fields, fields))
        raise LedgerError(f"{run_dir} was started with another configuration; it differs in\n  {differences}")
    return run_dir, replace(old, attempts=old.attempts + 1)


@dataclass(frozen=True, slots=True)
class Session:
    """What an attempt has at hand once it may begin."""

    run_dir: Path
    record: RunRecord
    ledger: Ledger
    watchers: Watchers
    progress: Progress
    tracker: Tracker
    faults: Faults

    @property
    def log_dir(self) -> Path:
        return self.run_dir / "logs"

    @property
    def resumes(self) -> tuple[int, str]:
        """Steps that the newest whole checkpoint holds, and its directory; (0, "") without one."""
        return self.ledger.checkpoints.newest(self.progress.warning)

    def trainer(self, config: TrainingConfig, steps: int) -> TrainerGroup:
        """Start the trainer of this attempt, from the newest checkpoint if there is one."""
        return TrainerGroup(config, steps, self.run_dir, self._attempt(config), self.resumes[1], self.faults)

    def reference(self, config: TrainingConfig) -> ReferencePool | None:
        """Start the reference pool, unless no objective asks for it."""
        return ReferencePool(config, self.run_dir, self.log_dir, self.faults) if config.needs_reference else None

    def _attempt(self, config: TrainingConfig) -> str:
        return f"{config.run.name}-attempt-{self.record.attempts}"

    async def learn(
        self,
        config: TrainingConfig,
        steps: int,
        ahead: int,
        trainer: TrainerGroup,
        reference: ReferencePool | None,
        consumers: Sequence[Consumer],
        nodes: Sequence[str],
        build: Callable[[], Awaitable[tuple[Source, Evaluator]]],
    ) -> None:
        """The loop from where the run stands to its end, and the export. ``nodes``: where weights have to arrive.

        ``build`` is awaited when everything is up, before the first step.
        """
        weights_dir = _weights_dir(config, self.run_dir, self._attempt(config), nodes)
        self.watchers.steps = steps
        if config.model.lora is not None:
            self.progress.message(
                f"training LoRA adapters of rank {config.model.lora.rank}; what is published and exported is merged"
            )
        try:
            source, evaluator = await build()
            stages = Stages(source, trainer, reference, consumers, evaluator)
            lost: TrainerLost | None = None
            while True:
                done, checkpoint = await asyncio.to_thread(
                    self.ledger.checkpoints.newest, self.progress.warning, again=lost is not None
                )
                try:
                    if lost is not None:
                        self.progress.message(f"the trainer is started again, from step {done}")
                        source.rewind()
                        await trainer.restart(lost, checkpoint)
                    version = Version(self._incarnation(done, steps), done)
                    loop = Loop(config, steps, ahead, stages, self.ledger, self.watchers, weights_dir, version)
                    if checkpoint or lost is not None:
                        await self._go_on(loop, reference, checkpoint)
                    await loop.run(done)
                    if not consumers and loop.version.step != steps:
                        await loop.publish(Version(version.incarnation, steps), Stopwatch())
                    break
                except TrainerLost as error:
                    lost = error
            self._finish(config, version_directory(weights_dir, loop.version))
        finally:
            shutil.rmtree(weights_dir, ignore_errors=True)

    async def _go_on(self, loop: Loop, reference: ReferencePool | None, checkpoint: str) -> None:
        """Give everybody the state of ``checkpoint``, which the trainer has already; empty: the initial one."""
        if checkpoint:
            self.progress.message(f"resuming after step {loop.version.step} from {checkpoint}")
        if reference is not None:
            moved = Path(checkpoint) / "reference" if checkpoint else None
            await reference.load(str(moved) if moved is not None and moved.exists() else "")
        await loop.publish(loop.version, Stopwatch())

    def _incarnation(self, done: int, steps: int) -> int:
        """A new life of the weights begins, with ``done`` steps in them: its number."""
        number = self.watchers.incarnate()
        uri = self.tracker.uri
        store = uri.removeprefix("sqlite:///") if uri.startswith("sqlite:") else ""
        self.ledger.record(Began(number, done, steps, store, time.time()))
        return number

    def _finish(self, config: TrainingConfig, published: Path) -> None:
        if not published.exists():
            self.progress.warning("no step found a pair to train on: the model is unchanged and nothing is exported")
            return
        model = export_published(published, Path(config.model.path), self.run_dir / "model")
        self.tracker.log_model(model, config.tracking.registered_model or config.run.name)
        self.watchers.finished()
        self.progress.final(self.watchers.last_evaluation, model, self.tracker.ui_command())


async def run_session(
    config: TrainingConfig, resume: ResumeMode, progress: Progress, body: Callable[[Session], Awaitable[None]]
) -> EvalReport | None:
    """Open the run, join the cluster, do ``body``, and leave everything in order. Returns the last evaluation."""
    refuse_unmeasured(config)
    await asyncio.to_thread(restore_run, config, resume, progress.message)
    run_dir, record = open_run(config, resume)
    if record.finished and (not isinstance(config, RunConfig) or config.run.steps <= record.finished):
        progress.message(f"{run_dir} has been finished (step {record.finished}); its model is {run_dir / 'model'}")
        return None
    ledger = Ledger(run_dir, record.attempts, config.deadlines.lease_s, progress.message)
    write_record(run_dir, record)
    write_configuration(run_dir, config)
    process = f"process {os.getpid()} on {socket.gethostname()}"
    ledger.record(AttemptBegan(record.attempts, process, time.time()))
    quiet_driver(run_dir / "logs" / "driver.log")
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    reason = ""
    tracker: Tracker | None = None
    copies: Copies | None = None
    try:
        tracker = Tracker.open(config, run_dir, record.mlflow_run or None, warn=progress.warning)
        tracker.log_inputs(config)
        record = replace(record, mlflow_run=tracker.run_id)
        write_record(run_dir, record)
        copies = open_copies(config, ledger, progress.message)
        watchers = Watchers(progress, tracker, run_dir, record)
        watchers.measured = partial(ledger.checkpoints.measured, config.checkpoint)

        def survived(fault: Fault) -> None:
            progress.warning(f"{fault.cause}; replaced ({fault.number} of this stage so far)")
            ledger.record(Survived(fault.stage, fault.cause, time.time()))
            watchers.fault(fault.stage)

        faults = Faults(config.recovery, survived)
        if config.deadlines.nodes_s:
            connect()
            await nodes_arrived(config, progress.message)
        join_cluster(config)
        tracker.log_cluster(cluster_facts())
        quiet_driver(run_dir / "logs" / "driver.log")  # again: libraries put up handlers when imported
        refuse_invisible(run_dir)
        await body(Session(run_dir, record, ledger, watchers, progress, tracker, faults))
        status = "FINISHED"
        return watchers.last_evaluation
    except (KeyboardInterrupt, asyncio.CancelledError):
        status = "KILLED"
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:500]
        raise
    finally:
        if tracker is not None:
            tracker.finish(status)
        with suppress(OSError, LedgerError):  # a full disk has a cause of its own, which is on its way already
            ledger.record(AttemptEnded(status, reason, time.time()))
        if copies is not None:
            copies.close(config.deadlines.call_s if status == "FINISHED" else LAST_COPIES_S)
        ledger.close()


def _weights_dir(config: TrainingConfig, run_dir: Path, attempt: str, nodes: Sequence[str]) -> Path:
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
