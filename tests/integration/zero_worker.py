"""What a real ZeRO-3 trainer does beside plain computation, on each rank of tests.integration.workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad
from transformers import AutoModelForCausalLM

from actors.commands import Checkpoint, Evaluate, Publish, Train
from actors.trainer import ZeroTrainer
from actors.weights import WeightFiles
from actors.zero import TrainerSetup
from configs.objectives import SECTIONS
from configs.schema import Batching, LoRA, Model, Optimizer
from pipelines.export import _checkpoint_weights
from preference.batching import collate, mismatched_examples
from preference.types import Pair, Prompt, Scored, Version
from tests.factories import candidate
from tests.tiny import tiny_model

BETA = 0.3


def pairs(count: int = 5) -> list[Scored]:
    """Pairs of unlike lengths with ids and reference scores drawn from a seed."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        p, a, b = rng.integers(2, 20), rng.integers(1, 15), rng.integers(1, 15)
        prompt = Prompt(f"p{i}", (), tuple(int(x) for x in rng.integers(3, 500, p)))
        chosen, rejected = (
            replace(candidate(f"p{i}", k, int(n)), token_ids=tuple(int(x) for x in rng.integers(3, 500, n)))
            for k, n in enumerate((a, b))
        )
        reference = tuple(rng.normal(-6, 0.5, n).astype(np.float32) for n in (a, b))
        found.append(Scored(Pair(f"pair{i}", prompt, chosen, rejected, 1.0), reference))
    return found


def written(path: Path, arch: Any = "llama") -> Path:
    """A tiny model, written by the first rank alone: that is all that Transformers would do."""
    if dist.get_rank() == 0 and not path.exists():
        tiny_model(path, arch)
    dist.barrier()
    return path


def plain(model: Any, scored: list[Scored]) -> tuple[float, dict[str, torch.Tensor]]:
    """DPO of the same pairs, padded to one length, through full logits: loss and gradients."""
    sequences, starts, lengths = [], [], []
    for s in scored:
        for response in s.item.responses:
            sequences.append(s.item.prompt.token_ids + response.token_ids)
            starts.append(len(s.item.prompt.token_ids))
            lengths.append(len(response.token_ids))
    width = max(map(len, sequences))
    ids = torch.tensor([list(x) + [2] * (width - len(x)) for x in sequences])
    mask = torch.tensor([[1] * len(x) + [0] * (width - len(x)) for x in sequences])
    logps = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    sums = []
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        target = ids[row, start : start + length]
        sums.append(logps[row, start - 1 : start - 1 + length].gather(1, target[:, None]).sum())
    policy = torch.stack(sums)
    reference = torch.tensor([float(a.sum()) for s in scored for a in s.reference])
    ratio = policy - reference
    loss = -torch.nn.functional.logsigmoid(BETA * (ratio[0::2] - ratio[1::2])).mean()
    loss.backward()
    return float(loss), {n: p.grad for n, p in model.named_parameters()}


def trainer(
    path: Path,
    objective: str = "dpo",
    lora: LoRA | None = None,
    checkpoint: str = "",
    dtype: Any = "float32",
    **more: Any,
) -> ZeroTrainer:
    section: Any = SECTIONS[objective](name=objective, **({"beta": BETA} if objective != "sft" else {}))
    batching = Batching(logprob_chunk=7, **more)
    setup = TrainerSetup(
        Model(path=str(path), dtype=dtype, lora=lora), section, Optimizer(lr=1e-2, warmup_steps=0), batching, 10, 0,
        2**16, checkpoint, "", False, 1,
    )  # fmt: skip
    return ZeroTrainer(setup, fetch=lambda batch: batch)


def command(kind: Any, scored: list[Scored], budget: int, mismatched: Any = (), **fields: Any) -> Any:
    batch = collate(scored, dist.get_world_size(), budget, mismatched)
    shares = tuple(batch.rank(r) for r in range(dist.get_world_size()))
    return kind(batch=shares, size=batch.size, **fields)


def differences(directory: Path, arch: Any) -> dict[str, float]:
    """Largest difference of loss and gradient from the plain computation, for several micro-batches and for one."""
    path = written(directory / arch, arch)
    scored = pairs()
    expected_loss, expected = plain(AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager"), scored)
    worst = {}
    for budget in (48, 400) if arch == "llama" else (48,):
        for checkpointing in (False, True) if arch == "llama" and budget == 48 else (False,):
            zero = trainer(path, activation_checkpointing=checkpointing)
            key = f"{arch} budget {budget}" + (" checkpointing" if checkpointing else "")
            train = command(Train, scored, budget, step=1, waiting=0.0)
            worst[key] = difference(zero, train, expected_loss, expected)
    return worst


def difference(zero: ZeroTrainer, train: Train, loss: float, gradients: dict[str, torch.Tensor]) -> float:
    """How far a step is from the plain loss and gradients at most; gradients above 1 relative to their largest."""
    found: dict[str, torch.Tensor] = {}
    step = zero._engine.step

    def keep_then_step() -> None:
        for name, parameter in zero._policy.lm.named_parameters():
            found[name] = safe_get_full_grad(parameter).clone()
        step()

    zero._engine.step = keep_then_step
    done = zero.execute(train)
    assert set(found) == set(gradients)
    apart = (float((found[n] - g).abs().max() / max(1.0, float(g.abs().max()))) for n, g in gradients.items())
    return max(abs(done.metrics.loss - loss), *apart)


def with_lora(directory: Path) -> dict[str, Any]:
    """Adapters train, publish merged, and resume; the frozen weights stay."""
    path = written(directory / "llama")
    scored = pairs()
    lora = LoRA(rank=4)
    zero = trainer(path, lora=lora)
    losses = [zero.execute(command(Train, scored, 64, step=s, waiting=0.0)).metrics.loss for s in (1, 2)]
    evaluated = zero.execute(command(Evaluate, scored, 64)).metrics.loss
    out = directory / f"published-{dist.get_world_size()}"
    zero.execute(Publish(Version(0, 2), str(out)))
    zero.execute(Checkpoint(2, str(directory / f"checkpoint-{dist.get_world_size()}")))
    following = zero.execute(command(Train, scored, 64, step=3, waiting=0.0)).metrics.loss
    dist.barrier()
    merged = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    before = {n: p.detach().clone() for n, p in merged.named_parameters()}
    state = dict(WeightFiles.open(out))
    merged.load_state_dict(state, strict=False)
    with torch.enable_grad():
        loss, _ = plain(merged, scored)
    exported = dict(_checkpoint_weights(directory / f"checkpoint-{dist.get_world_size()}", "float32", lora.alpha / 4))
    again = trainer(path, lora=lora, checkpoint=str(directory / f"checkpoint-{dist.get_world_size()}"))
    resumed = again.execute(command(Train, scored, 64, step=3, waiting=0.0)).metrics.loss
    return {
        "losses": losses,
        "evaluated": evaluated,
        "merged": loss,
        "following": following,
        "resumed": resumed,
        "names": sorted(state) == sorted(before),
        "exported": max(float((exported[n] - state[n]).abs().max()) for n in state),
        "changed": sorted({n.split(".")[-2] for n in state if not torch.equal(state[n], before[n])}),
    }


def with_statistics(directory: Path) -> dict[str, list[float]]:
    """Two steps of objectives that look at the whole batch, whatever the number of ranks and micro-batches."""
    path = written(directory / "llama")
    scored = pairs()
    references = [
        tuple(np.full(len(r), -6.0, np.float32) for r in e.responses)
        for e in mismatched_examples([s.item for s in scored])
    ]
    found = {}
    for objective in ("kto", "bco", "aot", "beta_dpo"):
        for budget in (400, 64):
            zero = trainer(path, objective)
            others = references if objective == "kto" else ()
            found[f"{objective} budget {budget}"] = [
                zero.execute(command(Train, scored, budget, others, step=s, waiting=0.0)).metrics.loss
                for s in (1, 2, 3)
            ]
    return found


def everything(directory: Path) -> dict[str, Any]:
    result: dict[str, Any] = {"differences": {}}
    for name in ("llama", "qwen3", "gemma3", "gemma2"):
        result["differences"] |= differences(directory, name)
    result["statistics"] = with_statistics(directory)
    result["lora"] = with_lora(directory)
    return result
