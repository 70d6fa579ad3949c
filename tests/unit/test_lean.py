"""Layers that keep less for backward compute what Transformers' own compute, and nothing else is replaced."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaMLP, LlamaRMSNorm

from preference.lean import slim

WIDTH = 24


class Unusual(LlamaRMSNorm):
    def forward(self, hidden_states):
        return super().forward(hidden_states) + 1e-2


def layer(kind):
    torch.manual_seed(0)
    if kind is LlamaMLP:
        return kind(LlamaConfig(hidden_size=WIDTH, intermediate_size=40, num_attention_heads=2))
    made = kind(WIDTH, eps=1e-5)
    torch.nn.init.normal_(made.weight)
    return made


def kept(module, x):
    """Bytes that autograd keeps of activations, a storage counted once."""
    storages = {}
    own = {p.untyped_storage().data_ptr() for p in module.parameters()} | {x.untyped_storage().data_ptr()}

    def keep(t):
        if t.untyped_storage().data_ptr() not in own:
            storages[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = module(x)
    return out, sum(t.untyped_storage().nbytes() for t in storages.values())


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma2RMSNorm, LlamaMLP])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
def test_same_outputs_and_gradients_with_less_kept(kind, dtype, tolerance):
    plain = layer(kind).to(dtype)
    lean = copy.deepcopy(plain)
    assert slim(lean) == {kind.__name__: 1}
    x = torch.randn(1, 7, WIDTH, dtype=dtype)
    results, sizes = [], []
    for module in (plain, lean):
        given = x.clone().requires_grad_()
        out, size = kept(module, given)
        results.append((out, *torch.autograd.grad(out.square().sum(), (given, *module.parameters()))))
        sizes.append(size)
    if dtype is not torch.float64 or kind is LlamaMLP:  # Transformers' norms compute in fp32 whatever comes in
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    assert sizes[1] < sizes[0]


def test_other_layers_are_left_alone():
    model = torch.nn.ModuleList(
        [layer(Unusual), torch.nn.LayerNorm(WIDTH), torch.nn.Embedding(9, WIDTH, padding_idx=8), torch.nn.SiLU()]
    )
    assert slim(model) == {}
    assert all("forward" not in vars(m) for m in model)


def test_a_frozen_norm_has_no_gradient():
    norm = layer(LlamaRMSNorm).requires_grad_(False)
    slim(norm)
    x = torch.randn(2, WIDTH, requires_grad=True)
    norm(x).sum().backward()
    assert norm.weight.grad is None
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_model_itself_is_not_touched(dtype):
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=40, num_attention_heads=2, num_hidden_layers=2, vocab_size=9
    )
    model = LlamaForCausalLM(config).to(dtype)
    before = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    with torch.no_grad():
        assert slim(model) == {"LlamaMLP": 2, "LlamaRMSNorm": 5}
    for name, p in model.named_parameters():
        assert p.dtype == dtype
        assert p.data_ptr() == before[name][0]
        assert torch.equal(p, before[name][1])
