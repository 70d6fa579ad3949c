"""Online DPO: the loop.

    prompts ──> sampler ──> judge ──> pairing ──> reference ──> trainer ──> weights v+1 ─┐
                   ^        (each group as soon as it is complete)                       │
                   └────────────────────────── load ─────────────────────────────────────┘

``prepare(step)`` is everything before the trainer and may run up to ``max_staleness`` steps ahead; ``learn`` takes
the optimizer step, publishes, and has the samplers load. With ``max_staleness: 0`` the two strictly alternate.

    prepare(s)  waits for: learn(s - 1 - max_staleness)    unblocked by: samplers serving its weights
    learn(s)    waits for: prepare(s), learn(s - 1)        unblocked by: scored pairs of step s

Run it: ``python -m pipelines.online --config configs/quickstart.yaml`` (the same as ``rondo run``).
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path

from actors.requests import SamplePlan
from actors.weights import discard_before
from configs.schema import RunConfig
from pipelines.heldout import HeldOut, score
from pipelines.ledger import Ledger, checkpoint_dir, prune_checkpoints
from pipelines.prompts import PromptSet
from pipelines.stages import Judge, Observer, Reference, Sampler, Trainer
from pipelines.timing import Stopwatch
from preference.batching import collate, pair_example, plan
from preference.pairing import Paired, PairingRules, Unpaired, make_pair
from preference.reports import ProbeMetrics, StepReport
from preference.summaries import ages, sample_metrics, sample_rows
from preference.types import Fate, JudgedGroup, JudgeFailure, Pair, ScoredPair, Version


class JudgeUnreliable(RuntimeError):
    """More judgements failed than ``max_failure_rate`` allows."""


@dataclass(frozen=True, slots=True)
class Stages:
    sampler: Sampler
    judge: Judge
    reference: Reference
    trainer: Trainer


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a step needs to learn: one fate a prompt, scored pairs, and how they came about."""

    judged: tuple[JudgedGroup, ...]
    fates: Counter[Fate]
    scored: tuple[ScoredPair, ...]
    probe: ProbeMetrics | None
    watch: Stopwatch


class OnlineLoop:
    def __init__(
        self,
        config: RunConfig,
        prompts: PromptSet,
        heldout: HeldOut,
        stages: Stages,
        ledger: Ledger,
        observer: Observer,
        weights_dir: Path,
        version: Version,
    ) -> None:
        self._config, self._prompts, self._heldout, self._stages = config, prompts, heldout, stages
        self._ledger, self._observer, self._weights_dir = ledger, observer, weights_dir
        self.version = version  # what the samplers serve
        self._journaled = ledger.replayable(prompts.prompts)

    async def run(self, done: int) -> None:
        """Steps ``done + 1`` to the last; ``done`` steps are already in the trainer's weights."""
        last, ahead = self._config.run.steps, self._config.run.max_staleness
        preparing: deque[asyncio.Task[Prepared]] = deque()
        submitted = done
        try:
            for step in range(done + 1, last + 1):
                while submitted < min(step + ahead, last):
                    submitted += 1
                    preparing.append(asyncio.create_task(self._prepare(submitted)))
                report = await self._learn(step, await preparing.popleft())
                self._observer.step_done(report)
                if self._heldout.due(step):
                    self._observer.evaluated(await self._heldout.evaluate(step, self.version))
        finally:
            for task in preparing:
                task.cancel()

    async def _prepare(self, step: int) -> Prepared:
        """Prompts -> judged candidates -> pairs -> reference scores; journaled, or replayed from the journal."""
        watch = Stopwatch()
        journaled = self._journaled.pop(step, None)
        probe = None
        if journaled:
            judged = list(journaled.judged)
        else:
            judged, probe = await asyncio.gather(self._sample_and_judge(step, watch), self._heldout.probe(step, watch))
        outcomes = [make_pair(group, self._pairing_rules()) for group in judged]
        fates = Counter(o.fate if isinstance(o, Unpaired) else Fate.TRAINED for o in outcomes)
        pairs = [o.pair for o in outcomes if isinstance(o, Paired)]
        scored = self._ledger.pairs_of(journaled, pairs) if journaled else None
        if scored is None:
            scored = await self._score(pairs, watch, step)
        if not journaled:
            self._ledger.prepared(step, scored)
        return Prepared(tuple(judged), fates, tuple(scored), probe, watch)

    async def _sample_and_judge(self, step: int, watch: Stopwatch) -> list[JudgedGroup]:
        """Each prompt is judged as soon as its candidates are complete, while others are still decoding."""
        sampling = self._config.sampling
        prompts = self._prompts.batch(step, sampling.prompts_per_step, self._config.run.seed)
        plan = SamplePlan(
            step, "train", sampling.candidates, sampling.max_tokens, sampling.temperature, sampling.top_p,
            self._config.run.seed,
        )  # fmt: skip
        judging: list[asyncio.Task[list[JudgedGroup]]] = []
        tokens = 0
        with watch.stage("sample") as sample:
            async for group in self._stages.sampler.sample(prompts, plan):
                tokens += sum(len(c.token_ids) for c in group.candidates)
                sample.tokens = tokens
                judging.append(asyncio.create_task(watch.timed("judge", self._stages.judge.judge([group]))))
                self._observer.stage(step, "sample", len(judging), len(prompts), tokens)
        judged = [j for batch in await asyncio.gather(*judging) for j in batch]
        order = {p.id: i for i, p in enumerate(prompts)}
        judged.sort(key=lambda j: order[j.group.prompt.id])  # completion order must not leak into the batch
        self._ledger.judged(step, judged)
        self._refuse_unreliable_judge(judged)
        return judged

    async def _score(self, pairs: list[Pair], watch: Stopwatch, step: int) -> list[ScoredPair]:
        """Reference log-probs, computed on the very cells the trainer will see."""
        layout = plan(
            [pair_example(p) for p in pairs], self._stages.trainer.ranks, self._config.batching.micro_batch_tokens
        )
        with watch.stage("reference") as stage:
            logps, stage.tokens = await score(self._stages.reference, layout)
        self._observer.stage(step, "reference", len(pairs), len(pairs), stage.tokens)
        return [ScoredPair(p, chosen, rejected) for p, (chosen, rejected) in zip(pairs, logps, strict=True)]

    async def _learn(self, step: int, prepared: Prepared) -> StepReport:
        """One optimizer step and its publication; without a pair nothing is trained and nothing is published."""
        watch, trainer = prepared.watch, self._stages.trainer
        trained_on = self.version
        metrics = None
        if prepared.scored:
            batch = collate(prepared.scored, trainer.ranks, self._config.batching.micro_batch_tokens)
            self._observer.stage(step, "train", 0, batch.pairs, batch.tokens)
            with watch.stage("train", batch.tokens):
                metrics = (await trainer.train(step, batch)).metrics
            await self.publish(Version(self.version.incarnation, step), watch)
        self._ledger.trained(step, str(self.version), metrics.loss if metrics else None)
        await self._checkpoint(step, watch)
        return StepReport(
            step=step,
            version=self.version,
            fates=prepared.fates,
            stages=watch.stages(),
            seconds=watch.elapsed(),
            sample=sample_metrics(prepared.judged),
            probe=prepared.probe,
            train=metrics,
            ages=ages(prepared.scored, trained_on),
            rows=sample_rows(prepared.judged, prepared.scored),
        )

    async def publish(self, version: Version, watch: Stopwatch) -> None:
        """Trainer weights -> files -> every running engine."""
        with watch.stage("publish"):
            done = await self._stages.trainer.publish(version, self._weights_dir / f"weights-{version}")
        with watch.stage("load"):
            await self._stages.sampler.load(done.directory, version)
        discard_before(self._weights_dir, version)
        self.version = version

    async def _checkpoint(self, step: int, watch: Stopwatch) -> None:
        config = self._config
        if step % config.checkpoint.every == 0 or step == config.run.steps:
            with watch.stage("checkpoint"):
                await self._stages.trainer.checkpoint(step, checkpoint_dir(self._ledger.run_dir, step))
            prune_checkpoints(self._ledger.run_dir, config.checkpoint.keep)

    def _pairing_rules(self) -> PairingRules:
        pairing, sampling = self._config.pairing, self._config.sampling
        return PairingRules(
            pairing.strategy,
            pairing.min_margin,
            sampling.missing_eos,
            sampling.missing_eos_penalty,
            self._config.run.seed,
        )

    def _refuse_unreliable_judge(self, judged: list[JudgedGroup]) -> None:
        failures = [j for g in judged for j in g.judgements if isinstance(j, JudgeFailure)]
        limit = self._config.judge.max_failure_rate
        if failures and len(failures) / len(judged) > limit:
            raise JudgeUnreliable(
                f"judge {self._config.judge.rule} failed on {len(failures)} of {len(judged)} prompts "
                f"(judge.max_failure_rate = {limit}); first error: {failures[0].error}"
            )


if __name__ == "__main__":
    import click

    from pipelines.cli import RESUME, run

    @click.command(help="The same as `rondo run`.")
    @click.option("--config", required=True)
    @click.argument("overrides", nargs=-1)
    @RESUME
    @click.pass_context
    def main(context: click.Context, config: str, overrides: tuple[str, ...], resume: str) -> None:
        context.invoke(run, config=config, overrides=overrides, resume=resume)

    main()
