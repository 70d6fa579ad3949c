"""Judging against plain vLLM: tokens a second of an LLM judge and of `LLM.generate` on the same prompts.

Both run in an actor of their own with both cores, alternated, on questions that neither has seen: prompts of the
quickstart with its policy's answers, every pair of each prompt's answers in both orders. A prompt's tokens count in
full though its beginning comes out of the prefix cache; both have one.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from actors.judges.encoding import QuestionEncoder
from actors.judges.llm import LlmJudgePool
from actors.judges.questions import Questionnaire
from benchmarks.common import ROOT, median, save, spread
from configs.judges import LlmJudge
from configs.schema import Deadlines, Group, Recovery
from preference.types import Match, Message, Prompt, Verdict, Written

MODEL = Path("~/.rondo/models/SmolLM2-135M-Instruct").expanduser()
ROUNDS, PROMPTS, ANSWERS = 5, 6, 4
GROUP = Group(cpus=1, threads=2)
JUDGE = LlmJudge(kind="llm", model=str(MODEL), min_mass=0.0)


class Plain:
    """vLLM as its documentation has it: one call of ``generate`` with all prompts."""

    def __init__(self, judge: LlmJudge) -> None:
        from vllm import LLM

        self._llm = LLM(
            judge.model, dtype=judge.dtype, enforce_eager=True, max_model_len=judge.max_model_len,
            kv_cache_memory_bytes=int(judge.kv_cache_gb * 2**30), generation_config="vllm", seed=0,
        )  # fmt: skip

    def generate(self, prompts: Sequence[Sequence[int]]) -> int:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, logprobs=1)
        done = self._llm.generate([{"prompt_token_ids": list(p)} for p in prompts], params, use_tqdm=False)
        return len(done)


def matches(number: int) -> list[Match]:
    """The questions of one round."""
    draw = random.Random(number)
    lines = (ROOT / "configs/prompts/sentiment.pairs.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    texts = [r[k][-1]["content"] for r in records for k in ("chosen", "rejected")]
    found = []
    for i, record in enumerate(draw.sample(records, PROMPTS)):
        prompt = Prompt(f"{number}-{i}", tuple(Message(m["role"], m["content"]) for m in record["prompt"]), ())
        answers = [
            Written(f"{prompt.id}/{k}", prompt.id, (), text) for k, text in enumerate(draw.sample(texts, ANSWERS))
        ]
        found += [Match(prompt, a, b) for a, b in combinations(answers, 2)]
    return found


async def measure(log_dir: Path) -> dict[str, Any]:
    import ray
    from transformers import AutoTokenizer

    from actors.faults import Faults
    from actors.pool import actor_options

    asked = Questionnaire(JUDGE)
    encoder = QuestionEncoder(AutoTokenizer.from_pretrained(MODEL), asked.labels, str(MODEL))
    options = actor_options(GROUP, {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "auto"})
    plain: Any = ray.remote(Plain).options(**options).remote(JUDGE)
    pool = LlmJudgePool(JUDGE, GROUP, Deadlines(), log_dir, "judge", "", Faults(Recovery()))
    await pool.ready()
    speeds: dict[str, list[float]] = {"judge": [], "plain": []}
    for number in range(-1, ROUNDS):  # the first one warms both up
        batch = matches(number)
        prompts = [encoder.encode(q) for match in batch for q in asked.both_orders(match)]
        tokens = sum(map(len, prompts))

        async def judge(batch: list[Match] = batch) -> None:
            assert all(isinstance(v, Verdict) for v in await pool.compare(batch))

        async def generate(prompts: list[tuple[int, ...]] = prompts) -> None:
            assert await plain.generate.remote(prompts) == len(prompts)

        runs = {"judge": judge, "plain": generate}
        for name in ("judge", "plain") if number % 2 else ("plain", "judge"):
            at = time.monotonic()
            await runs[name]()
            if number >= 0:
                speeds[name].append(tokens / (time.monotonic() - at))
    pool.close()
    ratios = [j / p for j, p in zip(speeds["judge"], speeds["plain"], strict=True)]
    return {
        "questions_a_round": 2 * len(batch),
        "tokens_a_question": round(tokens / len(prompts)),
        "judge_tokens_per_s": spread(speeds["judge"]),
        "plain_tokens_per_s": spread(speeds["plain"]),
        "ratio": spread(ratios),
        "claims": {">= 0.9 of plain": median(ratios) >= 0.9},
    }


def main() -> None:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        with TemporaryDirectory(prefix="rondo-bench-") as scratch:
            save("judging", asyncio.run(measure(Path(scratch))))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
