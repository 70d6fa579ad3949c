"""Reference scores of items, and of prompts with other prompts' responses, when prompts have several items."""

import asyncio

import numpy as np

from configs.loading import validate
from configs.runs import RunConfig
from pipelines.ledger.ledger import Ledger
from pipelines.scoring import Scorer
from pipelines.timing import Stopwatch
from preference.batching import collate, example, mismatched_examples
from preference.types import Labelled
from tests.factories import candidate, prompt

RAW = {
    "run": {"name": "t", "root": "/tmp"},
    "model": {"path": "/m"},
    "prompts": {"train": "/t", "heldout": "/h", "max_tokens": 64},
    "judge": {"kind": "rule", "rule": "a:b"},
    "objective": {"name": "kto"},
}


class Reference:
    """Scores a token with its id, so that whose scores they are can be told."""

    version = "initial"

    async def score(self, packed):
        return packed.target.astype(np.float32)


class Silent:
    def stage(self, *args):
        pass


def labels(*sizes):
    """So many labelled responses to each of the prompts."""
    items = []
    for p, size in enumerate(sizes):
        asked = prompt(f"p{p}", 3 + p)
        items += [
            Labelled(f"p{p}/{i}", asked, candidate(f"p{p}", i, 2 + i, first_token=100 * (p + 1)), i % 2 == 0)
            for i in range(size)
        ]
    return items


def test_items_of_a_prompt_get_different_responses_of_another():
    items = labels(3, 3, 3)
    found = mismatched_examples(items)
    assert len(found) == 9
    assert len({(e.prompt, e.responses) for e in found}) == 9
    owner = {example(i).responses: i.prompt.token_ids for i in items}
    assert all(owner[e.responses] != e.prompt for e in found)
    assert mismatched_examples(labels(4)) == []
    assert mismatched_examples([]) == []


def test_every_item_has_its_mismatched_scores_though_some_share_them(tmp_path):
    items = labels(3, 1)  # three have but one other prompt's response
    ledger = Ledger(tmp_path)
    scorer = Scorer(validate(RunConfig, RAW), Reference(), 2, ledger, Silent())
    scored, mismatched = asyncio.run(scorer.score(1, items, Stopwatch()))
    ledger.close()
    assert [a.tolist() for s in scored for a in s.reference] == [list(i.response.token_ids) for i in items]
    expected = [list(r) for e in mismatched_examples(items) for r in e.responses]
    assert [a.tolist() for arrays in mismatched for a in arrays] == expected
    assert len(mismatched) == len(items)
    batch = collate(scored, 2, 64, mismatched)
    assert sum(float(m.weights.sum()) for micro in batch.mismatched for m in micro) == len(items)
