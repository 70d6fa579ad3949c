"""Memory of one device of every group, in bytes, by what takes it. N ranks share P parameters of b bytes each.

trainer    ZeRO-3: b P/N weights, b T/N gradients, 12 T/N optimizer (fp32 master, Adam's two moments), T trainable;
           gathered layers, communication buckets, activations of a micro-batch, logits of a chunk
sampler    b P/g weights on each of g tensor-parallel GPUs; what gpu_memory_utilization leaves is KV cache
reference  b P weights, activations of a micro-batch, logits of a chunk
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.runs import RunConfig
from pipelines.plan.architecture import Architecture
from pipelines.plan.cluster import Gpu
from pipelines.plan.workload import Workload

GIB = 2.0**30
_PROCESS = 1.5 * GIB  # CUDA context, NCCL, cuBLAS workspaces, fragmentation
_ENGINE = 2.0 * GIB  # the same, CUDA graphs, and activations of a prefill
_LIVE = 1e9  # DeepSpeed's stage3_max_live_parameters
_SUB_GROUP = 1e9  # elements that a GPU trainer steps at a time (actors/zero.py)


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one device."""

    parts: tuple[tuple[str, float], ...]
    """What takes it, bytes."""
    available: float
    """Bytes."""

    @property
    def used(self) -> float:
        return sum(size for _, size in self.parts)

    @property
    def missing(self) -> float:
        """Bytes; 0 where it fits."""
        return max(0.0, self.used - self.available)

    def arithmetic(self) -> str:
        parts = " + ".join(f"{name} {size / GIB:.1f}" for name, size in self.parts)
        return f"{parts} = {self.used / GIB:.1f} GiB of {self.available / GIB:.1f} GiB"


def item_bytes(config: RunConfig) -> int:
    return 2 if config.model.dtype == "bfloat16" else 4


def trainable(arch: Architecture, config: RunConfig) -> float:
    """Parameters with gradients: all, or LoRA's."""
    lora = config.model.lora
    return float(arch.parameters if lora is None else lora.rank * arch.adapted)


def trainer_memory(arch: Architecture, config: RunConfig, gpu: Gpu, ranks: int) -> Memory:
    """Of one ZeRO-3 rank."""
    item, batching = item_bytes(config), config.batching
    learned = trainable(arch, config)
    offloaded = config.optimizer.offload != "none"
    bucket = config.weights.bucket_mb * 2**20 // 2 * item  # numbers gathered or reduced at a time
    activations = arch.activation_bytes(item, checkpointed=batching.activation_checkpointing)
    parts = [
        ("weights", 0.0 if config.optimizer.offload_parameters else item * arch.parameters / ranks),
        ("gradients", item * learned / ranks),
        ("optimizer", 0.0 if offloaded else 12 * learned / ranks),
        ("fp32 gradients of a sub-group", 0.0 if offloaded else 4 * min(learned / ranks, _SUB_GROUP)),
        ("gathered layers", item * min(arch.parameters, _LIVE) if ranks > 1 else 0.0),
        ("buckets", 3.0 * bucket if ranks > 1 else 0.0),
        ("activations", float(activations * batching.micro_batch_tokens)),
        ("logits", 3.0 * 4 * batching.logprob_chunk * arch.vocab),
        ("process", _PROCESS),
    ]
    return Memory(tuple((name, size) for name, size in parts if size), gpu.memory_gib * GIB)


def host_bytes(arch: Architecture, config: RunConfig, ranks: int) -> float:
    """Host memory of one rank for what is offloaded to it."""
    offload = config.optimizer
    moved = 16.0 * trainable(arch, config) if offload.offload == "cpu" else 0.0
    return (moved + (item_bytes(config) * arch.parameters if offload.offload_parameters else 0.0)) / ranks


def reference_memory(arch: Architecture, config: RunConfig, gpu: Gpu) -> Memory:
    """Of one actor: the whole model on one device."""
    item, batching = item_bytes(config), config.batching
    widest = 2 * arch.hidden + 3 * arch.intermediate * (arch.chosen_experts or 1)  # live at once, a token
    parts = (
        ("weights", float(item * arch.parameters)),
        ("activations", 2.0 * item * widest * batching.micro_batch_tokens),
        ("logits", 2.0 * 4 * batching.logprob_chunk * arch.vocab),
        ("process", _PROCESS),
    )
    return Memory(parts, gpu.memory_gib * GIB)


def judge_memory(work: Workload, gpu: Gpu) -> Memory:
    """Of one actor with a model of its own in bf16."""
    parts = (("weights", 2.0 * work.judging.parameters), ("process and activations", 2 * _PROCESS))
    return Memory(parts, gpu.memory_gib * GIB)


def sampler_memory(arch: Architecture, config: RunConfig, gpu: Gpu, gpus: int) -> Memory:
    """Of one GPU of an engine that spans ``gpus``; its KV cache holds at least one sequence of max_model_len."""
    item = item_bytes(config)
    split = min(gpus, arch.kv_heads)  # key-value heads are copied beyond that
    parts = (
        ("weights", item * arch.parameters / gpus),
        ("engine", _ENGINE),
        (
            "KV cache of one sequence of sampling.max_model_len",
            arch.kv_bytes(config.sampling.max_model_len, item) / split,
        ),
    )
    return Memory(parts, gpu.memory_gib * GIB * config.sampling.gpu_memory_utilization)


def kv_sequences(arch: Architecture, config: RunConfig, work: Workload, gpu: Gpu, gpus: int) -> float:
    """Responses that one engine can hold at once, the prompt shared by its candidates, at their mean length."""
    item = item_bytes(config)
    memory = sampler_memory(arch, config, gpu, gpus)
    free = (memory.available - sum(size for name, size in memory.parts if not name.startswith("KV"))) * gpus
    replicated = max(1.0, gpus / arch.kv_heads)
    each = work.lengths.cut_mean + work.prompt_tokens / work.candidates
    return max(0.0, free / (arch.kv_bytes(each, item) * replicated))
