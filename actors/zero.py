"""The ZeRO-3 engine over the policy: loading, adapters, DeepSpeed's configuration, and what is published of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actors.imports import lean_imports, operators_of_this_environment
from configs.objectives import BradleyTerry, Objective
from configs.schema import Batching, LoRA, Model, Optimizer
from preference.logprobs import LogProbModel, self_test
from preference.reward_model import RewardModel


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

    @property
    def scores(self) -> bool:
        """Whether it is a reward model that is trained: a scalar head in the place of the output projection."""
        return isinstance(self.objective, BradleyTerry)


def build_engine(setup: TrainerSetup) -> tuple[Any, LogProbModel | RewardModel]:
    """A ZeRO-3 engine over the policy: compute in the model's dtype, fp32 master weights, dropout off."""
    operators_of_this_environment()
    with lean_imports():
        import deepspeed
        from transformers.integrations import HfDeepSpeedConfig

    config = zero_config(setup)
    buffers = _true_buffers(setup.model)
    # While this object lives, from_pretrained partitions each layer as it loads: no rank ever holds the whole model.
    sharded_loading = HfDeepSpeedConfig(config)
    lm = _load(setup)
    del sharded_loading
    _dropout_off(lm)
    if setup.model.lora is not None:
        _add_adapters(lm, setup.model.lora, "SEQ_CLS" if setup.scores else "CAUSAL_LM")
        if setup.scores:
            lm.score.requires_grad_(True)  # a fresh head is nothing to adapt
    if setup.batching.activation_checkpointing:
        lm.train()
        lm.gradient_checkpointing_enable({"use_reentrant": False})
        lm.enable_input_require_grads()  # adapters alone would leave the checkpointed layers without a gradient
    collision = any(term.objective.collision for term in setup.objective.as_terms())
    policy = RewardModel(lm) if setup.scores else LogProbModel(lm, setup.batching.logprob_chunk, collision)
    options = {"lr": setup.optimizer.lr, "betas": setup.optimizer.betas, "weight_decay": setup.optimizer.weight_decay}
    parameters = [p for p in policy.parameters() if p.requires_grad]
    optimizer: Any
    if setup.on_gpu and setup.optimizer.offload == "none":
        optimizer = deepspeed.ops.adam.FusedAdam(parameters, adam_w_mode=True, **options)
    else:
        optimizer = deepspeed.ops.adam.DeepSpeedCPUAdam(parameters, adamw_mode=True, **options)
    engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=config)
    _restore_buffers(policy.lm, buffers, engine.device)
    return engine, policy


def _load(setup: TrainerSetup) -> Any:
    """The model, or its trunk under a scalar head: a fresh one, the same on every rank, unless it has one already."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    dtype = getattr(torch, setup.model.dtype)
    if setup.scores:
        return AutoModelForSequenceClassification.from_pretrained(setup.model.path, dtype=dtype, num_labels=1)
    return AutoModelForCausalLM.from_pretrained(setup.model.path, dtype=dtype)


def _dropout_off(lm: torch.nn.Module) -> None:
    """Policy and reference must agree before the first step, whatever mode the model is in."""
    lm.eval()
    for module in lm.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def _add_adapters(lm: Any, lora: LoRA, task: str) -> None:
    """Put LoRA adapters into ``lm`` in place; its own parameters are frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    target = lora.target if isinstance(lora.target, str) else list(lora.target)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=target)
    config.task_type = task
    try:
        inject_adapter_in_model(config, lm)
    except ValueError as error:
        raise ValueError(f"model.lora.target = {lora.target!r}: {error}") from error
    if lora.dropout:
        for name, module in lm.named_modules():
            if "lora_dropout" in name:
                module.train()


@dataclass(frozen=True, slots=True)
class Published:
    """One tensor of what samplers are given, and the ZeRO-3 parameters that it is made of."""

    name: str
    parameter: Any
    adapter: tuple[Any, Any, float] | None  # LoRA's A [r, in] and B [out, r], and the factor of B A

    @property
    def sources(self) -> list[Any]:
        return [self.parameter, *(self.adapter[:2] if self.adapter else ())]

    def value(self) -> Tensor:
        """The tensor on the CPU, adapters merged in fp32; its sources have to be gathered."""
        weight: Tensor = self.parameter.detach()
        if self.adapter:
            down, up, scale = self.adapter
            weight = (weight.float() + scale * (up.detach().float() @ down.detach().float())).to(weight.dtype)
        return weight.cpu()


def published(lm: torch.nn.Module) -> Iterator[Published]:
    """Every tensor of the model under its Hugging Face name; tied ones once, adapters merged into what they adapt."""
    adapted = {f"{name}.base_layer.weight": module for name, module in lm.named_modules() if hasattr(module, "lora_A")}
    for name, parameter in lm.named_parameters():
        if "lora_" in name:
            continue
        adapter = None
        if name in adapted:
            module: Any = adapted[name]
            adapter = (module.lora_A["default"].weight, module.lora_B["default"].weight, module.scaling["default"])
        yield Published(name.replace(".base_layer.", "."), parameter, adapter)


def buckets(lm: torch.nn.Module, most_bytes: int) -> Iterator[list[Published]]:
    """``published`` in groups of about ``most_bytes``: never the whole model, never tensor by tensor."""
    bucket: list[Published] = []
    size = 0
    for item in published(lm):
        bucket.append(item)
        size += item.parameter.ds_numel * item.parameter.element_size()
        if size >= most_bytes:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


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
    offload: dict[str, Any] = {"device": setup.optimizer.offload, "pin_memory": True}
    if setup.optimizer.offload == "nvme":
        offload["nvme_path"] = setup.optimizer.offload_path
    moved = {"offload_optimizer": offload} if setup.optimizer.offload != "none" else {}
    moved |= {"offload_param": offload} if setup.optimizer.offload_parameters else {}
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
            **moved,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def check_architecture(model: Model, chunk: int) -> float:
    """Run ``self_test`` on a shallow random fp32 copy of the architecture; raises where it cannot be packed."""
    with lean_imports():
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
