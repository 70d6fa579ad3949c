"""Synchronous online DPO in a straight line: what the loop must do with ``max_staleness: 0``, and nothing else.

No tasks, no queues, no ledger, no overlap: sample all, judge all, pair all, score all, train, load, next step.
"""

from __future__ import annotations

from typing import Any

from configs.runs import RunConfig
from pipelines.online import SamplePlan
from pipelines.pairing import pairing_rules
from preference.batching import Batch, collate, example, plan
from preference.pairing import make_items
from preference.types import Prompt, Scored, Version


async def straight_line(config: RunConfig, prompts: Any, sampler: Any, judge: Any, reference: Any) -> list[Batch]:
    """The batches of a run from its beginning to its end, in order."""
    run, sampling = config.run, config.sampling
    rules = pairing_rules(config.pairing, sampling, run.seed)
    batches, version = [], Version(0, 0)
    for step in range(1, run.steps + 1):
        asked: list[Prompt] = prompts.batch(step, sampling.prompts_per_step, run.seed)
        how = SamplePlan(
            step, "train", sampling.candidates, sampling.max_tokens, sampling.temperature, sampling.top_p, run.seed
        )
        answered = {g.prompt.id: g async for g in sampler.sample(asked, how)}
        judged = [await judge.judge(step, answered[p.id]) for p in asked]
        items = [item for group in judged for item in make_items(group, rules).items]
        if not items:
            continue  # nothing to train on: the weights stay
        scored: list[Scored | None] = [None] * len(items)
        for cell in plan([example(i) for i in items], 2, config.batching.micro_batch_tokens).real:
            logps = await reference.score(cell.packed)
            for k, arrays in zip(cell.members, cell.packed.split(logps), strict=True):
                scored[k] = Scored(items[k], arrays)
        batches.append(collate([s for s in scored if s is not None], 2, config.batching.micro_batch_tokens, ()))
        version = Version(0, step)
        await sampler.load("", version)
    return batches
