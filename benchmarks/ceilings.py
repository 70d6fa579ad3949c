"""What each stage can do alone, on the data of a finished run: started by iteration.py, one process a stage.

    sampler     plain vLLM `LLM.generate`, all prompts of a step in one call
    reference   the scoring forward without gradients, over the step's packed cells
    trainer     a bare ZeRO-3 engine under torchrun: forward, backward, optimizer step on the same packed batch

Prints one JSON line: seconds (and tokens) by step.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from configs.loading import load_config
from configs.runs import RunConfig
from pipelines.ledger.ledger import Ledger
from pipelines.pairing import pairing_rules
from pipelines.prompts import load_tokenizer, parse_line
from preference.batching import Batch, collate
from preference.pairing import make_items
from preference.types import Prompt, Scored


def prompts_of(config: RunConfig) -> dict[str, Prompt]:
    tokenizer = load_tokenizer(config.model.path)
    found = {}
    for line in Path(config.prompts.train).read_text(encoding="utf-8").splitlines():
        name, messages, _ = parse_line(line)
        turns = [{"role": m.role, "content": m.content} for m in messages]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        found[name] = Prompt(name, messages, tuple(ids))
    return found


def batches(config: RunConfig, run_dir: Path, prompts: dict[str, Prompt], ranks: int) -> list[Batch]:
    """The packed batch of every step, rebuilt from the run's ledger."""
    ledger, rules = Ledger(run_dir), pairing_rules(config.pairing, config.sampling, config.run.seed)
    try:
        out = []
        for _, judged in sorted(ledger.replayable(prompts).items()):
            items = [item for group in judged for item in make_items(group, rules).items]
            scored = [Scored(i, known) for i in items if (known := ledger.scores("initial", i.id))]
            if scored:
                out.append(collate(scored, ranks, config.batching.micro_batch_tokens))
        return out
    finally:
        ledger.close()


def sampler(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    prompts = prompts_of(config)
    by_step: dict[int, list[str]] = {}
    for line in (run_dir / "ledger" / "judgements.jsonl").read_text().splitlines():
        record = json.loads(line.partition(" ")[2])
        by_step.setdefault(record["step"], []).append(record["prompt_id"])
    from vllm import LLM, SamplingParams

    llm = LLM(
        config.model.path, dtype=config.model.dtype, enforce_eager=True, max_model_len=config.sampling.max_model_len,
        kv_cache_memory_bytes=int(config.sampling.kv_cache_gb * 2**30), generation_config="vllm", seed=0,
    )  # fmt: skip
    params = SamplingParams(
        n=config.sampling.candidates, max_tokens=config.sampling.max_tokens, temperature=1.0, logprobs=0
    )
    seconds, tokens = [], []
    for _, ids in sorted(by_step.items()):
        at = time.monotonic()
        done = llm.generate([{"prompt_token_ids": list(prompts[i].token_ids)} for i in ids], params, use_tqdm=False)
        seconds.append(time.monotonic() - at)
        tokens.append(sum(len(o.token_ids) for r in done for o in r.outputs))
    return {"seconds": seconds, "tokens": tokens}


def reference(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    from preference.logprobs import LogProbModel, model_inputs

    torch.set_num_threads(config.resources.reference.threads)
    lm = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=getattr(torch, config.model.dtype))
    model = LogProbModel(lm.eval().requires_grad_(False), config.batching.logprob_chunk)
    seconds = []
    for batch in batches(config, run_dir, prompts_of(config), config.resources.trainer.actors):
        at = time.monotonic()
        with torch.no_grad():
            for cell in (c for micro in batch.cells for c in micro):
                model(**model_inputs(cell.packed, "cpu"))
        seconds.append(time.monotonic() - at)
    return {"seconds": seconds}


def trainer(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    import deepspeed
    import torch
    import torch.distributed as dist

    from actors.imports import operators_of_this_environment
    from actors.zero import TrainerSetup, build_engine
    from preference.logprobs import model_inputs

    operators_of_this_environment()
    deepspeed.init_distributed("gloo")
    torch.set_num_threads(config.resources.trainer.threads)
    setup = TrainerSetup(
        config.model, config.objective, config.optimizer, config.batching, config.run.steps, 0,
        config.weights.bucket_mb * 2**20, "", "", False, config.resources.trainer.threads,
    )  # fmt: skip
    engine, _ = build_engine(setup)
    shared: list[Any] = [None]
    if dist.get_rank() == 0:  # a ledger has one reader at a time
        shared = [batches(config, run_dir, prompts_of(config), dist.get_world_size())]
    dist.broadcast_object_list(shared)
    seconds = []
    for batch in shared[0]:
        cells = batch.rank(dist.get_rank()).cells
        dist.barrier()
        at = time.monotonic()
        for micro, cell in enumerate(cells):
            engine.set_gradient_accumulation_boundary(micro == len(cells) - 1)
            engine.backward(-engine(**model_inputs(cell.packed, "cpu"))[0].mean())
        engine.step()
        seconds.append(time.monotonic() - at)
    return {"seconds": seconds} if dist.get_rank() == 0 else {}


if __name__ == "__main__":
    stage, config_file, directory, *overrides = sys.argv[1:]
    result = {"sampler": sampler, "reference": reference, "trainer": trainer}[stage](
        load_config(RunConfig, config_file, overrides), Path(directory)
    )
    if result:
        print("RESULT " + json.dumps(result))
