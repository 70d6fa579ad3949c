"""Online data: what a step learns from is sampled, judged and paired first.

    prompts ──> sampler, opponents ──> judge ──> pairing ──> reference ──> (pipelines.loop: trainer ──> weights v+1)
                                      (each group as soon as it is complete)

Run it: ``python -m pipelines.online --config configs/quickstart.yaml`` (the same as ``rondo run``).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial

from actors.requests import SamplePlan
from actors.sampler import SamplerPool
from configs.loading import ConfigError
from configs.opponents import DataPlayer
from configs.runs import RunConfig
from pipelines.doctor import refuse_unfit
from pipelines.feed import Feed, Judging, Place
from pipelines.heldout import HeldOut
from pipelines.judging.judges import heldout_judges, start_judges
from pipelines.ledger.ledger import Ledger
from pipelines.offline import after_sft
from pipelines.pairing import pairing_rules
from pipelines.play.guests import check_responses
from pipelines.play.lineup import Lineup
from pipelines.play.opponents import Opponents
from pipelines.progress import Progress
from pipelines.prompts import PromptError, PromptSet, check_file, heldout_ids, load_prompts, overlapping
from pipelines.scoring import Scorer
from pipelines.session import ResumeMode, Session, run_session
from pipelines.stages import Consumer, Evaluator, Judge, Observer, Prepared, Sampler, Source
from pipelines.timing import Stopwatch
from preference.admission import AdmissionRules
from preference.judge_metrics import Trust, failures
from preference.pairing import make_items
from preference.reports import EvalReport, ProbeMetrics
from preference.summaries import sample_metrics, sample_rows
from preference.types import CandidateGroup, Fate, JudgedGroup, Prompt, Version


class JudgeUnreliable(RuntimeError):
    """More judgements failed than ``max_failure_rate`` allows."""


class OnlineSource:
    """Prompts -> judged candidates -> pairs -> reference scores; journaled, or replayed from the journal."""

    def __init__(
        self,
        config: RunConfig,
        prompts: PromptSet,
        heldout: HeldOut,
        sampler: Sampler,
        judge: Judge,
        scorer: Scorer,
        ledger: Ledger,
        observer: Observer,
        opponents: Opponents | None = None,
    ) -> None:
        self._config, self._prompts, self._heldout = config, prompts, heldout
        self._judge, self._scorer, self._opponents = judge, scorer, opponents
        self._players: Sampler | Opponents = opponents or sampler
        self._ledger, self._observer = ledger, observer
        self._rules = pairing_rules(config.pairing, config.sampling, config.run.seed)
        self._trust = Trust()
        self._feed: Feed | None = None
        self._watch = Stopwatch()  # of the step that was asked for last
        self._served = 0, Version(0, 0)
        self.rewind()
        judge.restore(ledger.undecided(prompts.prompts))

    def rewind(self) -> None:
        """Steps may come again: those whose data is complete are replayed, others go on from what they have."""
        if self._feed is not None:
            self._feed.close()
            self._feed = None
        self._journaled = self._ledger.replayable(self._prompts.prompts)
        self._begun = self._ledger.begun(self._prompts.prompts)
        if self._opponents is not None:
            for step, groups in self._journaled.items():
                self._opponents.judged(step, groups)

    def served(self, step: int, version: Version) -> None:
        """``step`` is done, and samplers serve ``version``: its weights, or older ones where it trained nothing."""
        self._served = step, version
        if self._feed is not None:
            self._feed.served(step, version)

    async def prepare(self, step: int, watch: Stopwatch) -> Prepared:
        journaled = self._journaled.pop(step, None)
        if journaled is not None:
            return await self._made(step, journaled, None, watch, self._ledger.waited(step), self._ledger.stale(step))
        self._watch = watch
        self._feed = self._feed or self._open_feed(step)
        self._feed.ask(step)
        taken, probe = await asyncio.gather(self._feed.take(step), self._heldout.probe(step, watch))
        judged = [*taken.groups, *self._begun.late.get(step, ())]
        for late in await watch.timed("judge", self._judge.settle(step)):
            self._ledger.judged(step, late)
            judged.append(late)
        waiting = self._judge.waiting(step)
        self._ledger.waiting(step, waiting)
        await self._judge.consumed(step)
        self._refuse_unreliable_judge(judged)
        if warning := self._trust.update(step, judged):
            self._observer.message(warning)
        made = await self._made(step, judged, probe, watch, len(waiting), len(taken.stale))
        names = [g.group.candidates[0].id for g in judged]
        self._ledger.prepared(step, [s.item.id for s in made.scored], made.fates, names, taken.stale)
        self._feed.complete(step)
        if step == self._config.run.steps:
            self._feed.close()  # spare prompts that no step will need
        return replace(made, waiting=tuple(waiting))

    async def _made(
        self,
        step: int,
        judged: Sequence[JudgedGroup],
        probe: ProbeMetrics | None,
        watch: Stopwatch,
        waiting: int,
        stale: int,
    ) -> Prepared:
        """Pairs and their reference scores out of judged groups, and what became of every prompt."""
        faced = self._opponents.judged(step, judged) if self._opponents is not None else None
        made = [make_items(group, self._rules) for group in judged]
        fates = Counter(m.fate for m in made)
        fates += Counter({Fate.WAITING: waiting, Fate.STALE: stale})
        items = [item for m in made for item in m.items]
        scored, mismatched = await self._scorer.score(step, items, watch)
        rows = sample_rows(judged, scored)
        return Prepared(fates, scored, mismatched, sample_metrics(judged, faced), probe, rows, watch, tuple(judged))

    # -- prompts on their way ----------------------------------------------------------------------------------------

    def _open_feed(self, step: int) -> Feed:
        """``step`` is the first one whose data is not complete."""
        run, sampling = self._config.run, self._config.sampling
        size = len(self._batch(1))  # fewer than asked for where there are fewer prompts
        rules = AdmissionRules(size, run.max_staleness, sampling.order, sampling.spare, steps=run.steps)
        return Feed(rules, self._batch, self._sample, self._begun, step - 1, *self._served)

    def _plan(self, step: int, first: int = 0) -> SamplePlan:
        s = self._config.sampling
        seed = self._config.run.seed
        return SamplePlan(step, "train", s.candidates, s.max_tokens, s.temperature, s.top_p, seed, first)

    def _batch(self, step: int) -> list[Place]:
        """The places of ``step`` in the run's permutation."""
        prompts = self._prompts.batch(step, self._config.sampling.prompts_per_step, self._config.run.seed)
        plan = self._plan(step)
        return [Place(step, number, p, plan.request(p, 0).id) for number, p in enumerate(prompts)]

    async def _sample(self, places: Sequence[Place]) -> AsyncIterator[tuple[Place, Judging]]:
        """Each prompt is judged as soon as its candidates are complete, while others are still decoding."""
        step, watch = places[0].step, self._watch
        waiting = {p.prompt.id: p for p in places}
        tokens = 0
        with watch.stage("sample") as sample:
            async for group in self._players.sample([p.prompt for p in places], self._plan(step, places[0].number)):
                tokens += sum(len(c.token_ids) for c in group.candidates)
                sample.tokens = tokens
                place = waiting.pop(group.prompt.id)
                yield place, partial(self._judge_one, step, group, watch)
                self._observer.stage(step, "sample", len(places) - len(waiting), len(places), tokens)

    async def _judge_one(self, step: int, group: CandidateGroup, watch: Stopwatch) -> JudgedGroup | None:
        judged = await watch.timed("judge", self._judge.judge(step, group))
        if judged is not None:
            self._ledger.judged(step, judged)
        else:
            for asked in self._judge.waiting(step):
                if asked.group.candidates[0].id == group.candidates[0].id:
                    self._ledger.asked(step, asked)
        return judged

    def _refuse_unreliable_judge(self, judged: Sequence[JudgedGroup]) -> None:
        if not judged:
            return  # all of them wait for people
        failed = [failures(g.judgements) for g in judged]
        rate = sum(len(f) / max(len(g.judgements), 1) for f, g in zip(failed, judged, strict=True)) / len(judged)
        limit = self._config.judge.max_failure_rate
        if rate > limit:
            first = next(j for f in failed for j in f)
            raise JudgeUnreliable(
                f"judge {self._judge.name} failed on {sum(map(bool, failed))} of {len(judged)} prompts, at "
                f"{rate:.0%} of its judgements (judge.max_failure_rate = {limit}); first error: {first.error}"
            )


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
    if any(isinstance(o, DataPlayer) for o in config.opponents):
        check_responses(config.prompts.train)


async def run_online(config: RunConfig, resume: ResumeMode, progress: Progress) -> EvalReport | None:
    """``rondo run``: the whole attempt. Returns the final evaluation."""
    check_inputs(config)

    async def body(session: Session) -> None:
        await _online(await after_sft(config, session), session)

    return await run_session(config, resume, progress, body)


async def _online(config: RunConfig, session: Session) -> None:
    # Every actor starts at once, the trainer's long chain of processes first; prompts are read meanwhile.
    log_dir = session.log_dir
    trainer = session.trainer(config, config.run.steps)
    sampler = SamplerPool(config, log_dir, session.faults)
    lineup = Lineup(config, session.run_dir, log_dir, session.resumes[0], session.faults)
    judges = start_judges(config, session.run_dir, log_dir, session.progress, session.faults, sampler)
    reference = session.reference(config)
    try:
        session.progress.message("starting: vLLM engines, judges, reference pool, ZeRO-3 trainer; reading prompts")
        prompts, heldout_prompts, too_long = await asyncio.to_thread(load_all_prompts, config)
        if too_long:
            session.progress.message(f"{len(too_long)} prompts are too long and left out: {', '.join(too_long[:5])}")
        nodes = await sampler.ready()
        if reference is not None:
            await reference.ready()
        for judge in judges:
            await judge.ready()
        nodes += await trainer.ready()
        await lineup.ready(nodes[0])
        prompts, opponents = await asyncio.to_thread(lineup.opponents, sampler, prompts, session.watchers)
        consumers: list[Consumer] = [sampler, opponents] if opponents is not None else [sampler]

        async def build() -> tuple[Source, Evaluator]:
            ledger, watchers, independent = session.ledger, session.watchers, heldout_judges(config, judges)
            heldout = HeldOut(config, heldout_prompts, sampler, independent, reference, ledger, watchers)
            await heldout.baseline()
            scorer = Scorer(config, reference, trainer.ranks, ledger, watchers)
            source = OnlineSource(
                config, prompts, heldout, sampler, judges[0], scorer, ledger, watchers, opponents
            )  # fmt: skip
            return source, heldout

        ahead = config.run.max_staleness
        await session.learn(config, config.run.steps, ahead, trainer, reference, consumers, nodes, build)
    finally:
        await trainer.close()
        sampler.close()
        lineup.close()
        if reference is not None:
            reference.close()
        for judge in judges:
            judge.close()


def load_all_prompts(config: RunConfig) -> tuple[PromptSet, list[Prompt], tuple[str, ...]]:
    files = [config.prompts.train, config.prompts.heldout]
    train, heldout = load_prompts(files, config.model, config.prompts, config.resources.data_cpus)
    ids = heldout_ids(heldout.prompts, config.evaluation.prompts, config.run.seed)
    chosen = [heldout.prompts[i] for i in ids]
    return train, chosen, train.too_long + heldout.too_long


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
