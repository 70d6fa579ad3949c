"""Reference scores of items: computed on the very cells the trainer will see, journaled as they arrive, never twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from configs.runs import TrainingConfig
from pipelines.ledger.ledger import Ledger
from pipelines.stages import Observer, Reference
from pipelines.timing import Stopwatch
from preference.batching import Example, Floats, PlannedCell, example, mismatched_examples, plan
from preference.types import Item, Scored, content_id

MISMATCHED = "mismatched"  # part of the journal keys of mismatched examples


class Scorer:
    """Scores the items of a step. Without a reference pool scores are nan, and no time is spent."""

    def __init__(
        self, config: TrainingConfig, reference: Reference | None, ranks: int, ledger: Ledger, observer: Observer
    ) -> None:
        self._config, self._reference, self._ranks = config, reference, ranks
        self._ledger, self._observer = ledger, observer
        self._turn = asyncio.Lock()

    async def score(
        self, step: int, items: Sequence[Item], watch: Stopwatch
    ) -> tuple[tuple[Scored, ...], tuple[tuple[Floats, ...], ...]]:
        """The items with their scores, and the scores of their mismatched examples where an objective wants them."""
        if self._reference is None or not items:
            return tuple(Scored(item, _unknown(item)) for item in items), ()
        examples = {item.id: example(item) for item in items}
        others: list[tuple[str, Example]] = []  # two items may have the same one
        if any(term.objective.mismatched for term in self._config.terms):
            others = [(content_id(MISMATCHED, e.prompt, e.responses), e) for e in mismatched_examples(items)]
        async with self._turn:  # two steps under way at once may hold the same item, in two epochs
            with watch.stage("reference") as span:
                known, span.tokens = await self._known(examples, self._reference)
                more, tokens = await self._known(dict(others), self._reference)
                span.tokens += tokens
        self._observer.stage(step, "reference", len(items), len(items), span.tokens)
        return tuple(Scored(item, known[item.id]) for item in items), tuple(more[key] for key, _ in others)

    async def _known(
        self, examples: dict[str, Example], reference: Reference
    ) -> tuple[dict[str, tuple[Floats, ...]], int]:
        """Scores of ``examples``, and the tokens it took to find those that nobody had asked for before."""
        version = reference.version
        found = {key: self._ledger.scores(version, key) for key in examples}
        known = {key: scores for key, scores in found.items() if scores is not None}
        new = [key for key in examples if key not in known]
        layout = plan([examples[key] for key in new], self._ranks, self._config.batching.micro_batch_tokens)

        async def one(cell: PlannedCell) -> int:
            logps = await reference.score(cell.packed)
            for i, arrays in zip(cell.members, cell.packed.split(logps), strict=True):
                known[new[i]] = arrays
                self._ledger.scored(version, new[i], arrays)
            return cell.packed.tokens

        return known, sum(await asyncio.gather(*(one(cell) for cell in layout.real)))


def _unknown(item: Item) -> tuple[Floats, ...]:
    return tuple(np.full(len(r.token_ids), np.nan, np.float32) for r in item.responses)


async def score_examples(
    reference: Reference, examples: Sequence[Example], ranks: int, budget: int
) -> list[tuple[Floats, ...]]:
    """Reference log-probs of examples that belong to no step: one array a response."""
    cells = plan(examples, ranks, budget).real
    found: dict[int, tuple[Floats, ...]] = {}
    for cell, logps in zip(cells, await asyncio.gather(*(reference.score(c.packed) for c in cells)), strict=True):
        found |= dict(zip(cell.members, cell.packed.split(logps), strict=True))
    return [found[i] for i in range(len(examples))]
