"""What a real ZeRO-3 trainer of a reward model does beside plain computation, on each rank of
tests.integration.workers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification

from actors.commands import Checkpoint, Evaluate, Publish, Train
from actors.trainer import ZeroTrainer
from actors.weights import WeightFiles
from actors.zero import TrainerSetup
from configs.objectives import BradleyTerry
from configs.schema import Batching, LoRA, Model, Optimizer
from preference.reward_model import readable
from preference.types import Pair, Response, Scored, Version, Written
from tests.integration.zero_worker import command, difference, pairs, written

MARGIN, CENTRING, PAD = 0.3, 0.05, 2


def read(scored: list[Scored]) -> list[Scored]:
    """The same pairs with responses as a reward model reads them."""

    def one(response: Response) -> Written:
        return Written(response.id, response.prompt_id, readable(response.token_ids, PAD), response.text)

    items = [s.item for s in scored]
    found = [replace(i, chosen=one(i.chosen), rejected=one(i.rejected)) for i in items if isinstance(i, Pair)]
    return [Scored(i, tuple(np.full(len(r.token_ids), np.nan, np.float32) for r in i.responses)) for i in found]


def plain(model: Any, scored: list[Scored]) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of the same pairs by the classifier itself, padded to one length: loss and gradients."""
    sequences = [list(s.item.prompt.token_ids + r.token_ids) for s in scored for r in s.item.responses]
    width = max(map(len, sequences))
    ids = torch.tensor([x + [PAD] * (width - len(x)) for x in sequences])
    mask = torch.tensor([[1] * len(x) + [0] * (width - len(x)) for x in sequences])
    rewards = model(input_ids=ids, attention_mask=mask).logits[:, 0]
    chosen, rejected = rewards[0::2], rewards[1::2]
    losses = -F.logsigmoid(chosen - rejected - MARGIN) + CENTRING * (chosen + rejected) ** 2
    losses.mean().backward()
    return float(losses.mean()), {n: p.grad for n, p in model.named_parameters()}


def trainer(path: Path, lora: LoRA | None = None, checkpoint: str = "", **more: Any) -> ZeroTrainer:
    setup = TrainerSetup(
        Model(path=str(path), dtype="float32", lora=lora), BradleyTerry(margin=MARGIN, centring=CENTRING),
        Optimizer(lr=1e-2, warmup_steps=0), Batching(**more), 10, 0, 2**16, checkpoint, "", False, 1,
    )  # fmt: skip
    return ZeroTrainer(setup, fetch=lambda batch: batch)


def classifier(path: Path, head: torch.Tensor) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(path, attn_implementation="eager", num_labels=1)
    model.score.weight.data.copy_(head)
    return model.eval()


def head_of(zero: ZeroTrainer) -> torch.Tensor:
    weight = zero._policy.lm.score.weight
    with deepspeed.zero.GatheredParameters([weight]):
        return weight.detach().clone()


def differences(directory: Path, arch: Any) -> dict[str, float]:
    """Largest difference of loss and gradient from the plain computation, for several micro-batches and for one."""
    path = written(directory / arch, arch)
    scored = pairs()
    worst = {}
    for budget in (64, 400) if arch == "llama" else (64,):
        for checkpointing in (False, True) if arch == "llama" and budget == 64 else (False,):
            zero = trainer(path, activation_checkpointing=checkpointing)
            expected_loss, expected = plain(classifier(path, head_of(zero)), scored)
            key = f"{arch} budget {budget}" + (" checkpointing" if checkpointing else "")
            train = command(Train, read(scored), budget, step=1, waiting=0.0)
            worst[key] = difference(zero, train, expected_loss, expected)
    return worst


def with_lora(directory: Path) -> dict[str, Any]:
    """Adapters and the head train, publish merged, and resume; the frozen weights stay."""
    path = written(directory / "llama")
    scored = read(pairs())
    lora, world = LoRA(rank=4), dist.get_world_size()
    zero = trainer(path, lora)
    head = head_of(zero)
    before = {n: p.detach().clone() for n, p in classifier(path, head).named_parameters()}
    first = zero.execute(command(Train, scored, 64, step=1, waiting=0.0)).metrics
    zero.execute(Checkpoint(1, str(directory / f"checkpoint-{world}")))
    zero.execute(command(Train, scored, 64, step=2, waiting=0.0))
    evaluated = zero.execute(command(Evaluate, scored, 64)).metrics
    zero.execute(Publish(Version(0, 2), str(directory / f"published-{world}")))
    dist.barrier()
    state = dict(WeightFiles.open(directory / f"published-{world}"))
    model = classifier(path, head)
    model.load_state_dict(state, strict=True)
    again = trainer(path, lora, str(directory / f"checkpoint-{world}"))
    again.execute(command(Train, scored, 64, step=2, waiting=0.0))
    return {
        "head": float(head.std()),
        "losses": [first.loss, evaluated.loss],
        "plain": plain(model, pairs())[0],
        "resumed": again.execute(command(Evaluate, scored, 64)).metrics.loss,
        "logps": first.logps_chosen,
        "changed": sorted({n.rpartition(".")[0].rpartition(".")[2] for n in state if not state[n].equal(before[n])}),
    }


def everything(directory: Path) -> dict[str, Any]:
    result: dict[str, Any] = {"differences": {}}
    for name in ("llama", "gemma3", "gemma2"):  # the trunk is that of zero_worker
        result["differences"] |= differences(directory, name)
    result["lora"] = with_lora(directory)
    return result
