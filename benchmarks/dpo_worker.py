"""One rank of Rondo's trainer for trl_dpo.py, under torchrun. Rank 0 prints one line of JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.commands import Train
from actors.imports import operators_of_this_environment
from actors.trainer import ZeroTrainer
from actors.zero import TrainerSetup
from benchmarks import peak
from benchmarks.trl_dpo import WARM
from configs.objectives import SECTIONS
from configs.schema import Batching, Model, Optimizer
from preference.batching import Example, collate, example, pack, plan
from preference.logprobs import LogProbModel, model_inputs
from preference.types import Pair, Prompt, Scored, Written, content_id

BUDGET, CHUNK = 512, 64


def items(step: list[dict[str, str]], tokenizer: Any) -> list[Pair]:
    """The step's pairs as TRL tokenises them: plain text, an end-of-sequence token after each response."""
    found = []
    for record in step:
        prompt, chosen, rejected = (tuple(tokenizer(record[k])["input_ids"]) for k in ("prompt", "chosen", "rejected"))
        name = content_id(record)
        responses = (
            Written(f"{name}-{k}", name, (*ids, tokenizer.eos_token_id), "") for k, ids in enumerate((chosen, rejected))
        )
        found.append(Pair(name, Prompt(name, (), prompt), *responses, 1.0))
    return found


def references(path: str, pairs: list[Pair]) -> list[Scored]:
    model = LogProbModel(AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval())
    scored = []
    with torch.no_grad():
        for pair in pairs:
            packed = pack([example(pair)])
            (arrays,) = packed.split(model(**model_inputs(packed, "cpu"))[0].float().numpy())
            scored.append(Scored(pair, arrays))
    return scored


def sharing(trainer: ZeroTrainer, pairs: list[Pair]) -> float:
    """How much longer forward and backward of the same responses take when each is packed with its own prompt."""
    shared = [example(p) for p in pairs]
    alone = [Example(p.prompt.token_ids, (r.token_ids,)) for p in pairs for r in p.responses]
    seconds: dict[str, list[float]] = {"shared": [], "alone": []}
    for repetition in range(3):
        for name, examples in (("shared", shared), ("alone", alone)):
            cells = [m[dist.get_rank()].packed for m in plan(examples, dist.get_world_size(), BUDGET).cells]
            dist.barrier()
            at = time.monotonic()
            for cell in cells:
                trainer._engine.set_gradient_accumulation_boundary(False)
                trainer._engine.backward(-trainer._forward(cell)[0].mean() * 1e-6)
            dist.barrier()
            if repetition:
                seconds[name].append(time.monotonic() - at)
    return float(np.median(seconds["alone"]) / np.median(seconds["shared"]))


def main(settings: dict[str, Any]) -> None:
    operators_of_this_environment()
    deepspeed.init_distributed("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(settings["threads"])
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    data = [items(step, tokenizer) for step in json.loads(Path(settings["data"]).read_text())]
    long_prompts = items(json.loads(Path(settings["long_prompts"]).read_text())[1], tokenizer)
    scored = [references(settings["model"], step) for step in data]
    batching = Batching(micro_batch_tokens=BUDGET, logprob_chunk=CHUNK)
    objective: Any = SECTIONS["dpo"](name="dpo", beta=settings["beta"])
    setup = TrainerSetup(
        Model(path=settings["model"]), objective, Optimizer(lr=settings["lr"], warmup_steps=0),
        batching, len(data), 0, 2**26, "", "", False, settings["threads"],
    )  # fmt: skip
    trainer = ZeroTrainer(setup, fetch=lambda batch: batch)
    seconds, losses, waiting = [], [], []
    base = 0.0
    for number, step in enumerate(scored):
        batch = collate(step, world, BUDGET)
        shares = tuple(batch.rank(r) for r in range(world))
        if number <= 1:
            peak.reset()
        dist.barrier()
        at = time.monotonic()
        done: Any = trainer.execute(Train(number + 1, shares, batch.size, batch.waiting))
        dist.barrier()
        if number == 0:
            base = peak.megabytes()
            continue
        seconds.append(time.monotonic() - at)
        losses.append(done.metrics.loss)
        waiting.append(batch.waiting)
    above = torch.tensor(peak.megabytes() - base)
    dist.all_reduce(above)
    ratios = {"mix": sharing(trainer, data[1]), "long_prompts": sharing(trainer, long_prompts)}
    if rank == 0:
        real = [p for step in data[1 + WARM :] for p in step]
        tokens = sum(2 * len(p.prompt.token_ids) + sum(len(r.token_ids) for r in p.responses) for p in real)
        result = {
            "seconds": seconds,
            "losses": losses,
            "peak_mb": float(above),
            "tokens": tokens / len(data[1 + WARM :]),
            "sharing": ratios,
            "waiting": round(float(np.mean(waiting)), 4),
        }
        print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
