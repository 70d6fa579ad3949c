"""DeepSpeed ZeRO-3 trainer: Ray Train workers that hold one engine for the whole run and follow the command stream.

    driver ──append──> CommandStream ──take(i)──> every rank ──execute──> report(i) ──> driver

Gloo on CPU, NCCL on GPU. Losses are normalised over the items of the whole step, so 1 worker x 2 micro-batches equals
2 workers x 1.
"""

from __future__ import annotations

import math
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from actors.commands import (
    Checkpoint,
    CheckpointDone,
    Command,
    Done,
    Evaluate,
    EvaluateDone,
    Publish,
    PublishDone,
    Stop,
    Stopped,
    Train,
    TrainDone,
)
from actors.files import FileSum
from actors.nodes import Process
from actors.quiet import redirect_output
from actors.shards import FOLDER, State, adam_step, load_shares, save_shares
from actors.stream import Broken
from actors.weights import WeightWriter
from actors.zero import TrainerSetup, buckets, build_engine, check_architecture
from configs.schema import Optimizer
from preference.batching import Packed, RankBatch, StepSize
from preference.logprobs import model_inputs
from preference.objectives.step import assemble, cell_loss, cell_sums, mismatched_ratios
from preference.reports import TrainMetrics


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
    here = Process.this()
    redirect_output(Path(setup.log_dir) / f"trainer-{rank}.log")
    try:
        trainer = ZeroTrainer(setup)
        index = 0
        while True:
            command: Command = ray.get(stream.take.remote(index, rank, here))
            done = trainer.execute(command)
            ray.get(stream.report.remote(index, rank, done))
            if isinstance(command, Stop):
                return
            index += 1
    except Exception as error:
        cause = f"trainer rank {rank}:\n{traceback.format_exc()}"
        ray.get(stream.fail.remote(Broken(cause, lost=_another_is_gone(error))))
        raise


def _another_is_gone(error: Exception) -> bool:
    """Whether a collective broke because another rank did. gloo raises a plain RuntimeError with its source file."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in ("gloo/transport", "NCCL", "ncclRe"))


class ZeroTrainer:
    """One rank's share of the ZeRO-3 engine and what it can be told to do."""

    def __init__(self, setup: TrainerSetup, fetch: Callable[[Any], RankBatch] = ray.get) -> None:
        """``fetch`` turns what a command says of this rank's batch into the batch."""
        self._setup, self._fetch = setup, fetch
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(setup.seed)
        if not setup.on_gpu:
            torch.set_num_threads(setup.threads)
        if self._rank == 0:
            check_architecture(setup.model, setup.batching.logprob_chunk)
        self._engine, self._policy = build_engine(setup)
        self._device = self._engine.device
        self._terms = setup.objective.as_terms()
        self._stats: list[Any] = [term.objective.initial for term in self._terms]
        if setup.checkpoint:
            self._load(Path(setup.checkpoint))

    def execute(self, command: Command) -> Done:
        match command:
            case Train():
                return self._train(command)
            case Evaluate():
                return self._evaluate(command)
            case Publish():
                return self._publish(command)
            case Checkpoint():
                return self._checkpoint(command)
            case Stop():
                return Stopped()

    def _train(self, command: Train) -> TrainDone:
        started = time.monotonic()
        batch = self._fetch(command.batch[self._rank])
        lr = learning_rate(command.step, self._setup.optimizer, self._setup.steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._stats = self._observe(batch)
        sums = _Sums()
        for micro, cell in enumerate(batch.cells):
            self._engine.set_gradient_accumulation_boundary(micro == len(batch.cells) - 1)
            loss, shares = cell_loss(cell, *self._forward(cell.packed), self._terms, self._stats, command.size)
            # The loss is this cell's share of the step's mean; DeepSpeed averages gradients over ranks.
            self._engine.backward(loss * self._world)
            sums.add(shares)
        self._engine.step()
        grad_norm = float(self._engine.get_global_grad_norm() or 0.0)
        metrics = self._metrics(sums, command.size, grad_norm, lr, command.waiting)
        return TrainDone(metrics, time.monotonic() - started)

    def _evaluate(self, command: Evaluate) -> EvaluateDone:
        """Losses and rewards on a batch that nothing is learnt from."""
        batch = self._fetch(command.batch[self._rank])
        stats = self._observe(batch)
        sums = _Sums()
        with torch.no_grad():
            for cell in batch.cells:
                _, shares = cell_loss(cell, *self._forward(cell.packed), self._terms, stats, command.size)
                sums.add(shares)
        nan = float("nan")
        return EvaluateDone(self._metrics(sums, command.size, nan, nan, nan))

    def _metrics(self, sums: _Sums, size: StepSize, grad_norm: float, lr: float, waiting: float) -> TrainMetrics:
        metrics = _metrics(self._reduced(sums), size, grad_norm, lr, waiting)
        if self._setup.scores:  # a reward model has rewards, and log-probs of nothing
            metrics = replace(metrics, logps_chosen=float("nan"), logps_rejected=float("nan"))
        return metrics

    def _forward(self, packed: Packed) -> tuple[Tensor, Tensor]:
        logps: tuple[Tensor, Tensor] = self._engine(**model_inputs(packed, self._device))
        return logps

    def _observe(self, batch: RankBatch) -> list[Any]:
        """What the objectives have to know of the whole batch, found by a pass without gradients; often nothing."""
        if not any(term.objective.observe for term in self._terms):
            return self._stats
        with torch.no_grad():
            own = [part for c in batch.cells if (part := cell_sums(c, self._forward(c.packed)[0]))]
            ratios = [mismatched_ratios(c, self._forward(c.packed)[0]) for c in batch.mismatched]
        gathered: list[Any] = [None] * self._world
        dist.all_gather_object(gathered, (own, ratios))
        parts = [part for rank, _ in gathered for part in rank]
        mismatched = [ratio for _, rank in gathered for ratio in rank]
        observed = [
            term.objective.observe(assemble(parts, mismatched, term.objective.data), stats, **term.parameters)
            if term.objective.observe
            else stats
            for term, stats in zip(self._terms, self._stats, strict=True)
        ]
        return [_moved(stats, self._device) for stats in observed]

    def _reduced(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Sums over all ranks; every rank has the same names."""
        names = sorted(sums)
        values = torch.stack([sums[name] for name in names]).to(self._device)
        dist.all_reduce(values)
        return dict(zip(names, values.tolist(), strict=True))

    def _publish(self, command: Publish) -> PublishDone:
        """Every rank gathers, rank 0 writes, a bucket at a time."""
        import deepspeed

        writer = WeightWriter(Path(command.directory), command.version) if self._rank == 0 else None
        gather = write = 0.0
        for bucket in buckets(self._policy.lm, self._setup.bucket_bytes):
            at = time.monotonic()
            with deepspeed.zero.GatheredParameters([p for item in bucket for p in item.sources]):
                gather += time.monotonic() - at
                at = time.monotonic()
                if writer:
                    writer.add({item.name: item.value() for item in bucket})
                write += time.monotonic() - at
        size = writer.finish().bytes if writer else 0
        return PublishDone(command.version, command.directory, size, gather, write)

    def _checkpoint(self, command: Checkpoint) -> CheckpointDone:
        """Every rank writes its shares. A disk that refuses is an answer, not an error: all ranks must hear of it."""
        started = time.monotonic()
        directory = Path(command.directory)
        files: list[FileSum] = []
        error = ""
        try:
            files = self._save(directory, command.step)
        except (OSError, SafetensorError) as failure:
            error = f"trainer rank {self._rank}: {failure}"
        gathered: list[Any] = [None] * self._world
        dist.all_gather_object(gathered, (files, error))
        every = tuple(file for rank, _ in gathered for file in rank)
        error = next((e for _, e in gathered if e), "")
        return CheckpointDone(command.step, command.directory, time.monotonic() - started, every, error)

    def _save(self, directory: Path, step: int) -> list[FileSum]:
        optimizer = self._engine.optimizer
        files = save_shares(directory, optimizer, self._names, self._rank, self._world)
        if self._rank == 0:
            State(
                step=step,
                ranks=self._world,
                adam_step=adam_step(optimizer),
                stats=[_lasting(s) for s in self._stats],
                model=self._setup.model.path,
                scores=self._setup.scores,
                shapes={self._names[id(p)]: list(p.ds_shape) for group in optimizer.fp16_groups for p in group},
            ).write(directory)
            files.append(FileSum.of(directory / FOLDER / "state.json", directory))
        return files

    def _load(self, directory: Path) -> None:
        saved = load_shares(directory, self._engine.optimizer, self._names, self._rank, self._world)
        self._stats = [replace(s, **kept) if kept else s for s, kept in zip(self._stats, saved.stats, strict=True)]

    @property
    def _names(self) -> dict[int, str]:
        """Hugging Face names of the parameters, by ``id``."""
        return {id(p): name for name, p in self._policy.lm.named_parameters()}


class _Sums(defaultdict[str, Tensor]):
    """A step's reported sums, by name."""

    def __init__(self) -> None:
        super().__init__(lambda: torch.zeros((), dtype=torch.float64))

    def add(self, shares: dict[str, Tensor]) -> None:
        for name, share in shares.items():
            self[name] += share


def _moved(stats: Any, device: Any) -> Any:
    """Stats with their tensors on ``device``."""
    if not is_dataclass(stats) or isinstance(stats, type):
        return stats
    tensors = {f.name: value for f in fields(stats) if isinstance(value := getattr(stats, f.name), Tensor)}
    return replace(stats, **{name: tensor.to(device) for name, tensor in tensors.items()})


def _lasting(stats: Any) -> dict[str, float]:
    """What of an objective's stats outlives its step: the numbers. Tensors are about one batch."""
    values = asdict(stats) if is_dataclass(stats) and not isinstance(stats, type) else {}
    return {k: v for k, v in values.items() if isinstance(v, (int, float))}


def _metrics(sums: dict[str, float], size: StepSize, grad_norm: float, lr: float, waiting: float) -> TrainMetrics:
    """Means over the step, nan where there is nothing to take the mean of."""

    def mean(name: str, over: str) -> float:
        return sums[name] / sums[over] if sums[over] else float("nan")

    chosen = {k: mean(f"{k}_chosen", "count_chosen") for k in ("rewards", "logps", "ratio", "length")}
    rejected = {k: mean(f"{k}_rejected", "count_rejected") for k in ("rewards", "logps", "ratio", "length")}
    responses = sums["count_chosen"] + sums["count_rejected"]
    return TrainMetrics(
        loss=sums["loss"],
        grad_norm=grad_norm,
        lr=lr,
        rewards_chosen=chosen["rewards"],
        rewards_rejected=rejected["rewards"],
        rewards_margins=chosen["rewards"] - rejected["rewards"],
        rewards_accuracies=sums["accuracies"] / size.items,
        logps_chosen=chosen["logps"],
        logps_rejected=rejected["logps"],
        log_ratio_chosen=chosen["ratio"],
        log_ratio_rejected=rejected["ratio"],
        kl=(sums["ratio_chosen"] + sums["ratio_rejected"]) / responses,
        length_ratio=chosen["length"] / rejected["length"],
        mismatch=mean("mismatch", "sampled_tokens"),
        items=size.items,
        tokens=int(sums["tokens"]),
        waiting=waiting,
        scalars={name: value for name, value in sums.items() if "/" in name},
    )
