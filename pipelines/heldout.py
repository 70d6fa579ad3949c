"""Held-out prompts: win rate against the initial policy, KL to the reference, and a small probe every iteration."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actors.requests import SamplePlan
from configs.judges import is_independent
from configs.runs import RunConfig
from pipelines.ledger.ledger import Ledger
from pipelines.scoring import score_examples
from pipelines.stages import Judge, Observer, Reference, Sampler
from pipelines.timing import Stopwatch
from preference.batching import Example
from preference.reports import BeforeAfter, EvalReport, Judged, ProbeMetrics, PromptScores
from preference.types import CandidateGroup, Prompt, Version
from preference.winrate import length_controlled_win_rate, outcomes, win_rate


@dataclass(frozen=True, slots=True)
class Answers:
    """One answer a held-out prompt, and every judge's scores of them (nan where a judge failed)."""

    groups: tuple[CandidateGroup, ...]
    scores: tuple[tuple[float, ...], ...]  # [judge][prompt]

    @property
    def lengths(self) -> list[int]:
        return [len(g.candidates[0].token_ids) for g in self.groups]


class HeldOut:
    """Samples, judges and compares answers to held-out prompts. ``judges[0]`` is the one trained on, if any is."""

    def __init__(
        self,
        config: RunConfig,
        prompts: Sequence[Prompt],
        sampler: Sampler,
        judges: Sequence[Judge],
        reference: Reference | None,
        ledger: Ledger,
        observer: Observer,
    ) -> None:
        self._config, self._prompts, self._sampler = config, tuple(prompts), sampler
        self._judges, self._reference, self._ledger, self._observer = tuple(judges), reference, ledger, observer
        self._before: Answers | None = None

    async def after(self, step: int, version: Version) -> None:
        """Evaluate after the last step, and every ``evaluation.every`` steps."""
        every = self._config.evaluation.every
        if step == self._config.run.steps or (every > 0 and step % every == 0):
            self._observer.evaluated(await self.evaluate(step, version))

    def answer_with(self, sampler: Sampler) -> None:
        """Let another model answer from here on (comparing two models outside a run)."""
        self._sampler = sampler

    async def baseline(self) -> None:
        """The initial policy's answers: sampled once, before the first step, and kept in the ledger."""
        known = self._ledger.evaluation(0, {p.id: p for p in self._prompts})
        self._before = await self._judge(known if len(known) == len(self._prompts) else await self._answer(0))

    async def evaluate(self, step: int, version: Version) -> EvalReport:
        """Fresh answers of the serving policy against the initial policy's."""
        started = time.monotonic()
        if self._before is None:
            raise RuntimeError("HeldOut.evaluate needs HeldOut.baseline first")
        before, after = self._before, await self._judge(await self._answer(step))
        difference = np.array(after.lengths, float) - np.array(before.lengths, float)
        judged: list[Judged] = []
        for judge, old, new in zip(self._judges, before.scores, after.scores, strict=True):
            known = [i for i in range(len(old)) if np.isfinite(old[i]) and np.isfinite(new[i])]
            olds, news = [old[i] for i in known], [new[i] for i in known]
            judged.append(
                Judged(
                    judge=judge.name,
                    win_rate=win_rate(news, olds),
                    length_controlled=length_controlled_win_rate(
                        outcomes(news, olds).tolist(), difference[known].tolist()
                    ),
                    score_before=float(np.mean(olds)),
                    score_after=float(np.mean(news)),
                    trained_on=not judged and is_independent(self._config.judge),
                )
            )
        return EvalReport(
            step=step,
            version=version,
            judges=tuple(judged),
            length_before=float(np.mean(before.lengths)),
            length_after=float(np.mean(after.lengths)),
            kl=await self._kl(after.groups),
            examples=_examples(before, after),
            seconds=time.monotonic() - started,
            prompts=_prompt_scores(before, after),
        )

    async def probe(self, step: int, watch: Stopwatch) -> ProbeMetrics | None:
        """Score and KL of the policy of ``step`` on a rotating handful of held-out prompts."""
        size = min(self._config.evaluation.probe, len(self._prompts))
        if not size:
            return None
        start = (step - 1) * size
        prompts = [self._prompts[(start + i) % len(self._prompts)] for i in range(size)]
        groups = [g async for g in self._sampler.sample(prompts, self._plan(step, "probe"))]
        initial = {g.prompt.id: g for g in self._before.groups} if self._before else {}
        against = [initial[g.prompt.id] for g in groups] if initial else None
        scores = [s for s in await self._judges[0].score(groups, against) if np.isfinite(s)]
        with watch.stage("probe"):  # sampling it rides along with the training batch; scoring it is extra
            kl = await self._kl(groups)
        return ProbeMetrics(float(np.mean(scores)) if scores else float("nan"), kl, size)

    async def _answer(self, step: int) -> list[CandidateGroup]:
        groups = []
        tokens = 0
        async for group in self._sampler.sample(self._prompts, self._plan(step, "eval")):
            groups.append(group)
            tokens += len(group.candidates[0].token_ids)
            self._observer.stage(step, "evaluate", len(groups), len(self._prompts), tokens)
        order = {p.id: i for i, p in enumerate(self._prompts)}
        groups.sort(key=lambda g: order[g.prompt.id])
        self._ledger.evaluated(step, groups)
        return groups

    async def _judge(self, groups: Sequence[CandidateGroup]) -> Answers:
        scores = []
        against = self._before.groups if self._before else None
        for judge in self._judges:
            scores.append(tuple(await judge.score(groups, against)))
        return Answers(tuple(groups), tuple(scores))

    async def _kl(self, groups: Sequence[CandidateGroup]) -> float:
        """Mean over responses of sum_t log pi - log ref, nats: unbiased for KL(pi || ref) on fresh samples.

        Without a reference pool there is nothing to compare with: nan.
        """
        if self._reference is None:
            return float("nan")
        examples = [Example(g.prompt.token_ids, (g.candidates[0].token_ids,)) for g in groups]
        ranks, budget = self._config.resources.reference.actors, self._config.batching.micro_batch_tokens
        logps = await score_examples(self._reference, examples, ranks, budget)
        ratios = [sum(g.sampled[0].logprobs) - float(ref.sum()) for g, (ref,) in zip(groups, logps, strict=True)]
        return float(np.mean(ratios))

    def _plan(self, step: int, purpose: str) -> SamplePlan:
        sampling, evaluation = self._config.sampling, self._config.evaluation
        return SamplePlan(
            step, purpose, 1, sampling.max_tokens, evaluation.temperature, sampling.top_p, self._config.run.seed
        )


def _prompt_scores(before: Answers, after: Answers) -> tuple[PromptScores, ...]:
    return tuple(
        PromptScores(group.prompt.id, tuple(s[i] for s in before.scores), tuple(s[i] for s in after.scores))
        for i, group in enumerate(before.groups)
    )


def _examples(before: Answers, after: Answers, count: int = 3) -> tuple[BeforeAfter, ...]:
    """Evenly spread by improvement, not the best ones: worst, median and best change under the first judge."""
    change = [b - a for a, b in zip(before.scores[0], after.scores[0], strict=True)]
    order = sorted((i for i in range(len(change)) if np.isfinite(change[i])), key=lambda i: change[i])
    picks = sorted({order[round(k * (len(order) - 1) / (count - 1))] for k in range(count)}) if order else []
    return tuple(
        BeforeAfter(
            before.groups[i].prompt.text,
            before.groups[i].candidates[0].text,
            after.groups[i].candidates[0].text,
            before.scores[0][i],
            after.scores[0][i],
        )
        for i in picks
    )
