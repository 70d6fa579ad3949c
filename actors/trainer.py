"""DeepSpeed ZeRO-3 DPO trainer: Ray Train workers that hold one engine for the whole run and follow the command stream.

    driver ──append──> CommandStream ──take(i)──> every rank ──execute──> report(i) ──> driver

Gloo on CPU, NCCL on GPU. Losses are normalised over the pairs of the whole step, so 1 worker x 2 micro-batches equals
2 workers x 1.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from torch import Tensor

from actors.commands import (
    Checkpoint,
    CheckpointDone,
    Command,
    Done,
    Publish,
    PublishDone,
    Stop,
    Stopped,
    Train,
    TrainDone,
)
from actors.quiet import redirect_output
from actors.weights import WeightWriter
from configs.schema import Batching, Model, Objective, Optimizer
from preference.batching import PairCell
from preference.logprobs import LogProbModel, model_inputs, self_test
from preference.losses import PairLogps, dpo, sum_by_sequence
from preference.reports import TrainMetrics


@dataclass(frozen=True, slots=True)
class TrainerSetup:
    """All that a worker needs to build its engine; the same for every rank."""

    model: Model
    objective: Objective
    optimizer: Optimizer
    batching: Batching
    steps: int
    seed: int
    bucket_bytes: int
    checkpoint: str  # directory to continue from; empty: start from the model
    log_dir: str
    on_gpu: bool
    threads: int


def learning_rate(step: int, optimizer: Optimizer, steps: int) -> float:
    """Learning rate of 1-based ``step`` of ``steps``: linear warm-up, then constant, or linear / cosine to zero."""
    if step <= optimizer.warmup_steps:
        return optimizer.lr * step / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return optimizer.lr
    left = (steps - step + 1) / (steps - optimizer.warmup_steps)
    left = min(max(left, 0.0), 1.0)
    return optimizer.lr * (left if optimizer.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left))


def train_worker(loop_config: dict[str, Any]) -> None:
    """Ray Train's per-worker function: build the engine once, then execute commands until ``Stop``."""
    setup: TrainerSetup = loop_config["setup"]
    stream = loop_config["stream"]
    rank = ray.train.get_context().get_world_rank()
    node = ray.get_runtime_context().get_node_id()
    redirect_output(Path(setup.log_dir) / f"trainer-{rank}.log")
    try:
        trainer = ZeroTrainer(setup)
        index = 0
        while True:
            command: Command = ray.get(stream.take.remote(index, rank, node))
            done = trainer.execute(command)
            ray.get(stream.report.remote(index, rank, done))
            if isinstance(command, Stop):
                return
            index += 1
    except Exception:
        ray.get(stream.fail.remote(f"trainer rank {rank}:\n{traceback.format_exc()}"))
        raise


class ZeroTrainer:
    """One rank's share of the ZeRO-3 engine and what it can be told to do."""

    def __init__(self, setup: TrainerSetup) -> None:
        self._setup = setup
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(setup.seed)
        if not setup.on_gpu:
            torch.set_num_threads(setup.threads)
        if self._rank == 0:
            check_architecture(setup.model, setup.batching.logprob_chunk)
        self._engine, self._policy = build_engine(setup)
        self._device = self._engine.device
        self._step = 0
        if setup.checkpoint:
            self._load(setup.checkpoint)

    def execute(self, command: Command) -> Done:
        match command:
            case Train():
                return self._train(command)
            case Publish():
                return self._publish(command)
            case Checkpoint():
                return self._checkpoint(command)
            case Stop():
                return Stopped()

    def _train(self, command: Train) -> TrainDone:
        started = time.monotonic()
        cells: tuple[PairCell, ...] = ray.get(command.cells[self._rank])
        lr = learning_rate(command.step, self._setup.optimizer, self._setup.steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        sums = torch.zeros(len(_SUMS), dtype=torch.float64)
        for micro, cell in enumerate(cells):
            self._engine.set_gradient_accumulation_boundary(micro == len(cells) - 1)
            loss, contribution = self._loss(cell)
            # DeepSpeed averages gradients over ranks: scale so that the step's mean is over its pairs.
            self._engine.backward(loss * (self._world / command.pairs))
            sums += contribution
        self._engine.step()
        self._step = command.step
        grad_norm = float(self._engine.get_global_grad_norm() or 0.0)
        sums = sums.to(self._device)
        dist.all_reduce(sums)
        metrics = _metrics(sums.cpu(), command, grad_norm, lr)
        return TrainDone(metrics, time.monotonic() - started)

    def _loss(self, cell: PairCell) -> tuple[Tensor, Tensor]:
        """Sum of the cell's weighted pair losses, and its contribution to the step's sums (``_SUMS``)."""
        logps = self._engine(**model_inputs(cell.rows, self._policy.dtype, self._device))
        lengths = torch.from_numpy(cell.rows.lengths).to(self._device)
        reference = torch.from_numpy(cell.reference).to(self._device)
        policy_sums, reference_sums = sum_by_sequence(logps, lengths), sum_by_sequence(reference, lengths)
        pair = PairLogps(
            policy_sums[0::2],
            policy_sums[1::2],
            reference_sums[0::2],
            reference_sums[1::2],
            lengths[0::2],
            lengths[1::2],
        )
        weights = torch.from_numpy(cell.weights).to(self._device)
        beta = self._setup.objective.beta
        losses = dpo(pair, beta, self._setup.objective.label_smoothing)
        with torch.no_grad():
            chosen, rejected = beta * pair.chosen_ratio, beta * pair.rejected_ratio
            token_weights = torch.repeat_interleave(weights, 2).repeat_interleave(lengths)
            gap = (logps.detach() - torch.from_numpy(cell.sampler).to(self._device)).abs()
            per_pair = torch.stack(
                [losses, chosen, rejected, (chosen > rejected).float(), pair.chosen, pair.rejected]
            ).double()
            sums = [*(per_pair * weights).sum(1), (gap * token_weights).sum().double(), token_weights.sum().double()]
            tokens = float(cell.rows.tokens) if cell.weights.any() else 0.0
            contribution = torch.stack([s.cpu() for s in sums] + [torch.tensor(tokens, dtype=torch.float64)])
        return (losses * weights).sum(), contribution

    def _publish(self, command: Publish) -> PublishDone:
        """Every rank gathers, rank 0 writes, a bucket at a time: never the whole model, never tensor by tensor."""
        import deepspeed

        writer = WeightWriter(Path(command.directory), command.version) if self._rank == 0 else None
        gather = write = 0.0
        for names, parameters in self._buckets():
            at = time.monotonic()
            with deepspeed.zero.GatheredParameters(parameters):
                gather += time.monotonic() - at
                at = time.monotonic()
                if writer:
                    writer.add({n: p.detach().cpu() for n, p in zip(names, parameters, strict=True)})
                write += time.monotonic() - at
        size = writer.finish().bytes if writer else 0
        return PublishDone(command.version, command.directory, size, gather, write)

    def _buckets(self) -> Iterator[tuple[list[str], list[Any]]]:
        names: list[str] = []
        parameters: list[Any] = []
        size = 0
        for name, parameter in self._policy.lm.named_parameters():  # shared (tied) parameters come once
            names.append(name)
            parameters.append(parameter)
            size += parameter.ds_numel * parameter.element_size()
            if size >= self._setup.bucket_bytes:
                yield names, parameters
                names, parameters, size = [], [], 0
        if names:
            yield names, parameters

    def _checkpoint(self, command: Checkpoint) -> CheckpointDone:
        started = time.monotonic()
        self._engine.save_checkpoint(command.directory, tag="state", client_state={"rondo_step": self._step})
        dist.barrier()
        if self._rank == 0:
            manifest = {"step": command.step, "world": self._world}
            partial = Path(command.directory) / "complete.json.partial"
            partial.write_text(json.dumps(manifest))
            os.replace(partial, Path(command.directory) / "complete.json")
        return CheckpointDone(command.step, command.directory, time.monotonic() - started)

    def _load(self, directory: str) -> None:
        path, state = self._engine.load_checkpoint(directory, tag="state")
        if path is None:
            raise RuntimeError(f"checkpoint {directory} could not be loaded by DeepSpeed")
        self._step = int(state["rondo_step"])


def build_engine(setup: TrainerSetup) -> tuple[Any, LogProbModel]:
    """A ZeRO-3 engine over the policy: compute in the model's dtype, fp32 master weights, dropout off."""
    # DeepSpeed compiles its operators with the ninja on the PATH. Another ninja than the environment's own, where that
    # is not activated, is missing or takes what is built for out of date.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    import deepspeed
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    config = zero_config(setup)
    buffers = _true_buffers(setup.model)
    # While this object lives, from_pretrained partitions each layer as it loads: no rank ever holds the whole model.
    sharded_loading = HfDeepSpeedConfig(config)
    lm = AutoModelForCausalLM.from_pretrained(setup.model.path, dtype=getattr(torch, setup.model.dtype))
    del sharded_loading
    lm.eval()  # dropout off
    if setup.batching.activation_checkpointing:
        lm.train()
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    policy = LogProbModel(lm, setup.batching.logprob_chunk)
    options = {"lr": setup.optimizer.lr, "betas": setup.optimizer.betas, "weight_decay": setup.optimizer.weight_decay}
    parameters = [p for p in policy.parameters() if p.requires_grad]
    optimizer: Any
    if setup.on_gpu:
        optimizer = deepspeed.ops.adam.FusedAdam(parameters, adam_w_mode=True, **options)
    else:
        optimizer = deepspeed.ops.adam.DeepSpeedCPUAdam(parameters, adamw_mode=True, **options)
    engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=config)
    _restore_buffers(policy.lm, buffers, engine.device)
    return engine, policy


def _true_buffers(model: Model) -> dict[str, Tensor]:
    """Buffers as the architecture makes them; its parameters stay on the meta device and take no memory."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        skeleton = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(model.path), dtype=getattr(torch, model.dtype)
        )
    return dict(skeleton.named_buffers())


def _restore_buffers(lm: torch.nn.Module, buffers: dict[str, Tensor], device: Any) -> None:
    """Put exact buffers into ``lm``: where DeepSpeed shards a model as it loads, it makes them in the compute type.

    Rotary frequencies rounded to bf16 move log-probs by tenths of a nat, and the reference has them in fp32.
    """
    persistent = lm.state_dict(keep_vars=True).keys()
    for prefix, module in lm.named_modules():
        for name in module._buffers:
            full = f"{prefix}.{name}" if prefix else name
            if full not in persistent:  # the others come from the checkpoint
                module._buffers[name] = buffers[full].to(device)


def zero_config(setup: TrainerSetup) -> dict[str, Any]:
    """DeepSpeed's configuration, derived from ours and from nothing else."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # our own packed micro-batches; DeepSpeed only checks the product
        "gradient_accumulation_steps": 1,  # boundaries are set by hand, their number varies with the batch
        "gradient_clipping": setup.optimizer.max_grad_norm,
        "bf16": {"enabled": setup.model.dtype == "bfloat16"},
        "zero_optimization": {
            "stage": 3,
            "sub_group_size": 2**24 if not setup.on_gpu else 10**9,  # elements stepped at a time: bounds fp32 copies
            "overlap_comm": setup.on_gpu,
            # Elements gathered or reduced at a time. The default of 5e8 buffers all gradients of a small model at once.
            "reduce_bucket_size": setup.bucket_bytes // 2,
            "stage3_prefetch_bucket_size": setup.bucket_bytes // 2,
            "contiguous_gradients": True,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def check_architecture(model: Model, chunk: int) -> float:
    """Run ``self_test`` on a shallow random fp32 copy of the architecture; raises where it cannot be packed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model.path)
    text = config.get_text_config()
    # Deep enough to hold every kind of layer the architecture alternates between.
    kinds = getattr(text, "layer_types", None) or ["full_attention"]
    depth = max(kinds.index(kind) + 1 for kind in set(kinds))
    text.num_hidden_layers = max(depth, 2)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return self_test(lm, text.vocab_size, chunk)


_SUMS = (
    "loss",
    "rewards_chosen",
    "rewards_rejected",
    "rewards_accuracies",
    "logps_chosen",
    "logps_rejected",
    "gap",
    "response_tokens",
    "tokens",
)


def _metrics(sums: Tensor, command: Train, grad_norm: float, lr: float) -> TrainMetrics:
    total = dict(zip(_SUMS, sums.tolist(), strict=True))
    n = command.pairs
    return TrainMetrics(
        loss=total["loss"] / n,
        grad_norm=grad_norm,
        lr=lr,
        rewards_chosen=total["rewards_chosen"] / n,
        rewards_rejected=total["rewards_rejected"] / n,
        rewards_margins=(total["rewards_chosen"] - total["rewards_rejected"]) / n,
        rewards_accuracies=total["rewards_accuracies"] / n,
        logps_chosen=total["logps_chosen"] / n,
        logps_rejected=total["logps_rejected"] / n,
        mismatch=total["gap"] / max(total["response_tokens"], 1),
        pairs=n,
        tokens=int(total["tokens"]),
        padding=command.padding,
        scalars={},
    )
