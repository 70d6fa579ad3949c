"""The reference pool against the trainer's own forward and a plain padded forward, on the same pairs: tokens/s.

Three ways to score the same pairs with as many threads each: a real reference actor (packed cells through Ray, as the
loop asks it), the packed forward of the trainer with gradients (what a training step computes before its backward),
and plain Transformers, one padded batch of full logits a cell. Alternated, medians. Tokens are those of the responses.
Every repetition begins with another way: what one gives back to the kernel slows down the next.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import QUICKSTART, median, save, spread
from configs.loading import load_config
from configs.runs import RunConfig
from preference.batching import Example, plan

PAIRS, REPETITIONS, WARM = 32, 6, 1
PROMPT, RESPONSE = (15, 125), (10, 175)  # UltraFeedback's lengths, a quarter of them


def examples(vocabulary: int) -> list[Example]:
    import numpy as np

    rng = np.random.default_rng(0)

    def ids(bounds: tuple[int, int]) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(10, vocabulary, rng.integers(*bounds)))

    return [Example(ids(PROMPT), (ids(RESPONSE), ids(RESPONSE))) for _ in range(PAIRS)]


def plain(model: Any, cell: list[Example]) -> None:
    """Full logits of the padded sequences of a cell, and the log-probs of their tokens."""
    import torch

    sequences = [e.prompt + r for e in cell for r in e.responses]
    width = max(map(len, sequences))
    ids = torch.tensor([s + (2,) * (width - len(s)) for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sequences])
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    logits.float().log_softmax(-1).gather(2, ids[:, 1:, None])


def main() -> None:
    import ray
    import torch
    from transformers import AutoModelForCausalLM

    from actors.faults import Faults
    from actors.reference import ReferencePool
    from pipelines.cluster import connect
    from preference.logprobs import LogProbModel, model_inputs

    config = load_config(RunConfig, QUICKSTART, ["resources.reference.threads=2"])
    dtype = getattr(torch, config.model.dtype)
    connect()
    with tempfile.TemporaryDirectory(prefix="rondo-bench-") as logs:
        pool = ReferencePool(config, Path(logs), Path(logs), Faults(config.recovery))
        torch.set_num_threads(config.resources.reference.threads)
        load = AutoModelForCausalLM.from_pretrained
        untouched = load(config.model.path, dtype=dtype).eval()
        trained = LogProbModel(load(config.model.path, dtype=dtype).eval(), config.batching.logprob_chunk)
        asked = examples(untouched.config.vocab_size)
        cells = plan(asked, 1, config.batching.micro_batch_tokens).real
        tokens = sum(len(r) for e in asked for r in e.responses)

        async def ask() -> None:
            await asyncio.gather(*(pool.score(cell.packed) for cell in cells))

        def train() -> None:
            for cell in cells:
                trained(**model_inputs(cell.packed, "cpu"))

        def pad() -> None:
            with torch.no_grad():
                for cell in cells:
                    plain(untouched, [asked[i] for i in cell.members])

        loop = asyncio.new_event_loop()
        loop.run_until_complete(pool.ready())
        ways: dict[str, Callable[[], Any]] = {
            "reference_pool": lambda: loop.run_until_complete(ask()),
            "trainer_forward": train,
            "plain_padded": pad,
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for repetition in range(WARM + REPETITIONS):
            first = repetition % len(ways)
            for way in [*ways][first:] + [*ways][:first]:
                at = time.monotonic()
                ways[way]()
                if repetition >= WARM:
                    rates[way].append(tokens / (time.monotonic() - at))
        pool.close()
        loop.close()
    ray.shutdown()
    ours = median(rates["reference_pool"])
    save(
        "reference",
        {
            "pairs": f"{PAIRS} pairs, prompts of {PROMPT} and responses of {RESPONSE} tokens, SmolLM2-135M, 2 threads",
            "tokens_per_s": {way: spread(values) for way, values in rates.items()},
            "pool_over_trainer_forward": round(ours / median(rates["trainer_forward"]), 3),
            "pool_over_plain": round(ours / median(rates["plain_padded"]), 3),
        },
    )


if __name__ == "__main__":
    main()
