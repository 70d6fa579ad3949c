"""The loop: every kind of training, online and offline, sampled or read from files, synchronous or running ahead.

    source ──scored items──> trainer ──> weights v+1 ──> consumers (samplers), reference (when it is refreshed)
       ^                                                     │
       └──────────── an online source samples with them ─────┘

``source.prepare(step)`` is everything before the trainer and may run up to ``ahead`` steps ahead of it; ``_learn``
takes the optimizer step, publishes, and has the samplers load. With ``ahead`` 0 the two strictly alternate.

    prepare(s)  waits for: learn(s - 1 - ahead)       unblocked by: samplers serving its weights
    learn(s)    waits for: prepare(s), learn(s - 1)   unblocked by: scored items of step s
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.stream import TrainerLost
from actors.weights import discard_before, version_directory
from configs.runs import TrainingConfig
from pipelines.ledger.ledger import Ledger, LedgerError
from pipelines.stages import Consumer, Evaluator, Observer, Prepared, Reference, Source, Trainer
from pipelines.timing import Stopwatch
from preference.batching import collate
from preference.displacement import Displacement
from preference.reports import StepReport, TrainMetrics
from preference.summaries import ages
from preference.types import Version


@dataclass(frozen=True, slots=True)
class Stages:
    source: Source
    trainer: Trainer
    reference: Reference | None  # None for objectives that need none
    consumers: Sequence[Consumer]  # who is given every new version
    evaluator: Evaluator


class Loop:
    def __init__(
        self,
        config: TrainingConfig,
        steps: int,
        ahead: int,
        stages: Stages,
        ledger: Ledger,
        observer: Observer,
        weights_dir: Path,
        version: Version,
    ) -> None:
        self._config, self._steps, self._ahead, self._stages = config, steps, ahead, stages
        self._ledger, self._observer, self._weights_dir = ledger, observer, weights_dir
        self._displacement = Displacement()
        self.version = version  # what has been published last

    async def run(self, done: int) -> None:
        """Steps ``done + 1`` to the last; ``done`` steps are already in the trainer's weights."""
        preparing: deque[asyncio.Task[Prepared]] = deque()
        submitted = done
        self._stages.source.served(done, self.version)
        try:
            for step in range(done + 1, self._steps + 1):
                while submitted < min(step + self._ahead, self._steps):
                    submitted += 1
                    preparing.append(asyncio.create_task(self._stages.source.prepare(submitted, Stopwatch())))
                report = await self._learn(step, await preparing.popleft())
                self._stages.source.served(step, self.version)
                self._observer.step_done(report)
                await self._stages.evaluator.after(step, self.version)
            await asyncio.to_thread(self._ledger.checkpoints.settle)
        except TrainerLost:
            # What is under way needs no trainer, and is there when its step comes again.
            await asyncio.gather(*preparing, return_exceptions=True)
            raise
        finally:
            for task in preparing:
                task.cancel()

    async def _learn(self, step: int, prepared: Prepared) -> StepReport:
        """One optimizer step and its publication; without an item nothing is trained and nothing is published."""
        watch, trainer, trained_on = prepared.watch, self._stages.trainer, self.version
        metrics: TrainMetrics | None = None
        if prepared.scored:
            budget = self._config.batching.micro_batch_tokens
            batch = collate(prepared.scored, trainer.ranks, budget, prepared.mismatched)
            self._observer.stage(step, "train", 0, batch.items, batch.tokens)
            with watch.stage("train", batch.tokens):
                metrics = (await trainer.train(step, batch)).metrics
            if self._stages.consumers or self._refreshes(step):
                await self.publish(Version(self.version.incarnation, step), watch)
        if self._refreshes(step):
            await self._refresh(step, watch)
        self._ledger.trained(step, str(self.version), metrics.loss if metrics else None)
        await self._checkpoint(step, watch)
        if metrics and (warning := self._displacement.update(step, metrics)):
            self._observer.message(warning)
        return StepReport(
            step=step,
            version=self.version,
            fates=prepared.fates,
            stages=watch.stages(),
            seconds=watch.elapsed(),
            sample=prepared.sample,
            probe=prepared.probe,
            train=metrics,
            ages=ages(prepared.scored, trained_on),
            rows=prepared.rows,
            judged=prepared.judged,
            waiting=prepared.waiting,
        )

    async def publish(self, version: Version, watch: Stopwatch) -> None:
        """Trainer weights -> files -> every consumer."""
        with watch.stage("publish"):
            done = await self._stages.trainer.publish(version, version_directory(self._weights_dir, version))
        if self._stages.consumers:
            with watch.stage("load"):
                await asyncio.gather(*(c.load(done.directory, version) for c in self._stages.consumers))
        discard_before(self._weights_dir, version)
        self.version = version

    def _refreshes(self, step: int) -> bool:
        reference = self._config.reference
        return reference.refresh == "periodic" and step % reference.every == 0 and self._stages.reference is not None

    async def _refresh(self, step: int, watch: Stopwatch) -> None:
        """Move the reference towards what was just published; items scored before keep their scores."""
        assert self._stages.reference is not None
        directory = version_directory(self._weights_dir, self.version)
        if directory.exists():  # nothing has been published where no step found anything to train on
            with watch.stage("refresh"):
                await self._stages.reference.refresh(str(directory), self._config.reference.alpha)
            self._observer.message(f"step {step}: the reference moved towards the policy ({self.version})")

    async def _checkpoint(self, step: int, watch: Stopwatch) -> None:
        checkpoint = self._config.checkpoint
        if step % checkpoint.every and step != self._steps:
            return
        checkpoints = self._ledger.checkpoints
        with watch.stage("checkpoint"):
            directory = await asyncio.to_thread(checkpoints.begin, step)  # waits for the disk to have the one before
            if self._stages.reference is not None and self._config.reference.refresh != "fixed":
                await self._stages.reference.save(str(directory / "reference"))
            done = await self._stages.trainer.checkpoint(step, directory)
        if done.error:
            raise LedgerError(
                f"the checkpoint of step {step} cannot be written to {directory}: {done.error}; what was committed "
                f"before is whole: free space or repair the disk, and go on with --resume=auto"
            )
        checkpoints.seal(directory, step, str(self.version), done.files, checkpoint)
