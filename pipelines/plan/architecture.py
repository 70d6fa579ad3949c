"""A decoder's sizes from its Hugging Face ``config.json``: parameters, KV cache, floating-point operations.

Exact for the families named in ``_FAMILIES`` (a test counts Transformers' own models); others are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class PlanError(Exception):
    """A plan cannot be made; the message names the resource or the field, both values and the fix."""


@dataclass(frozen=True, slots=True)
class _Family:
    """What a family's ``config.json`` leaves unsaid."""

    tied: bool = False  # default of tie_word_embeddings
    norms: int = 2  # RMSNorms of hidden size a layer
    qk_norm: bool = False  # a norm of head size on queries and one on keys
    qkv_bias: bool = False
    window_every: int = 0  # of so many layers all but the last look at a window; 1: every layer does


_FAMILIES = {
    "llama": _Family(),
    "mistral": _Family(window_every=1),
    "qwen2": _Family(qkv_bias=True),
    "qwen3": _Family(qk_norm=True),
    "gemma": _Family(tied=True),
    "gemma2": _Family(tied=True, norms=4, window_every=2),
    "gemma3_text": _Family(tied=True, norms=4, qk_norm=True, window_every=6),
    "phi3": _Family(),
    "mixtral": _Family(window_every=1),
    "qwen3_moe": _Family(qk_norm=True),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder with grouped-query attention and gated MLPs, dense or of experts."""

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of the MLP, or of one expert."""
    vocab: int
    tied: bool
    norms: int
    qk_norm: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    experts: int
    """0: a dense MLP."""
    chosen_experts: int
    window: int
    """Tokens that a windowed layer looks back on."""
    windowed_layers: int

    @property
    def _attention(self) -> int:
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        weights = self.hidden * (queries + 2 * keys) + queries * self.hidden
        biases = (queries + 2 * keys) * self.qkv_bias + self.hidden * self.output_bias
        return weights + biases + 2 * self.head_dim * self.qk_norm

    @property
    def _mlp(self) -> int:
        return 3 * self.hidden * self.intermediate + (2 * self.intermediate + self.hidden) * self.mlp_bias

    def _layer(self, mlps: int) -> int:
        router = self.hidden * self.experts
        return self._attention + mlps * self._mlp + router + self.norms * self.hidden

    @property
    def embedding(self) -> int:
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters; tied embeddings once."""
        layers = self.layers * self._layer(self.experts or 1)
        return layers + self.embedding * (1 if self.tied else 2) + self.hidden

    @property
    def trunk(self) -> int:
        """Parameters that a token multiplies with, without embedding and output projection."""
        return self.layers * self._layer(self.chosen_experts or 1)

    @property
    def adapted(self) -> int:
        """Sum over linear layers of inputs + outputs: LoRA on all of them has this times its rank."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * (self.hidden + queries) + 2 * (self.hidden + keys)
        return self.layers * (attention + (self.experts or 1) * 3 * (self.hidden + self.intermediate))

    def kv_bytes(self, tokens: float, item: int = 2) -> float:
        """KV cache of one sequence of ``tokens``, in bytes, with ``item`` bytes a number."""
        each = 2 * self.kv_heads * self.head_dim * item
        full = self.layers - self.windowed_layers
        return each * (full * tokens + self.windowed_layers * min(tokens, self.window))

    def forward_flops(self, tokens: float, projected: float, context: float) -> float:
        """Of ``tokens`` positions of which ``projected`` reach the vocabulary, each looking at ``context`` others.

        2 FLOPs a weight and token; attention 4 x layers x heads x head size x context.
        """
        attention = 4.0 * self.layers * self.heads * self.head_dim * context
        return (2.0 * self.trunk + attention) * tokens + 2.0 * self.embedding * projected

    def activation_bytes(self, item: int, *, checkpointed: bool) -> int:
        """Kept for backward for each token of a micro-batch, in bytes.

        A layer keeps the inputs and outputs of two norms, queries, keys, values, the attention's output, and an MLP's
        two projections (``preference.lean``); with checkpointing only its input, and one layer at a time the rest.
        """
        heads = 2 * (self.heads + self.kv_heads) * self.head_dim
        layer = (4 * self.hidden + heads + 2 * self.intermediate * (self.chosen_experts or 1)) * item
        return self.layers * self.hidden * item + layer if checkpointed else self.layers * layer


def architecture(config: Mapping[str, Any], where: str = "config.json") -> Architecture:
    """From the contents of a ``config.json``; of a multimodal model the text part. Raises PlanError."""
    config = config.get("text_config", config)
    kind = str(config.get("model_type", ""))
    family = _FAMILIES.get(kind)
    if family is None:
        raise PlanError(f"{where}: model_type = {kind!r} is not known here; known: {', '.join(sorted(_FAMILIES))}")
    try:
        hidden, heads, layers = (int(config[k]) for k in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
        vocab = int(config["vocab_size"])
        experts = int(config.get("num_local_experts") or config.get("num_experts") or 0)
        width = config["moe_intermediate_size"] if "moe_intermediate_size" in config else config["intermediate_size"]
        chosen = int(config["num_experts_per_tok"]) if experts else 0
    except KeyError as error:
        raise PlanError(f"{where}: {error.args[0]} is missing") from None
    bias = bool(config.get("attention_bias", False))
    window = int(config.get("sliding_window") or 0) if config.get("use_sliding_window", True) else 0
    return Architecture(
        family=kind, layers=layers, hidden=hidden, heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        intermediate=int(width), vocab=vocab,
        tied=bool(config.get("tie_word_embeddings", family.tied)),
        norms=family.norms, qk_norm=family.qk_norm,
        qkv_bias=bias or family.qkv_bias, output_bias=bias, mlp_bias=bool(config.get("mlp_bias", False)),
        experts=experts, chosen_experts=chosen,
        window=window, windowed_layers=_windowed(config, family, layers) if window else 0,
    )  # fmt: skip


def _windowed(config: Mapping[str, Any], family: _Family, layers: int) -> int:
    if kinds := config.get("layer_types"):
        return sum(kind == "sliding_attention" for kind in kinds)
    every = int(config.get("sliding_window_pattern") or family.window_every)
    return layers if every == 1 else layers - layers // every if every else 0


def read_architecture(directory: str) -> Architecture:
    """Of the model in ``directory``; only its ``config.json`` is read. Raises PlanError."""
    file = Path(directory) / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{file}: {error.strerror or error}; model.path is to hold the model's config.json") from None
    except ValueError as error:
        raise PlanError(f"{file} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise PlanError(f"{file} holds no JSON object")
    return architecture(found, str(file))
