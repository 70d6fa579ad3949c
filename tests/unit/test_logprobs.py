"""Chunked, packed log-probs equal plain logits; gradients too; no full logits, no foreign tokens visible."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
)

from preference.attention import Layout
from preference.batching import Example, pack
from preference.logprobs import LogProbModel, chunked_logprobs, model_inputs, self_test

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "head_dim": 8,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
KINDS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6, "query_pre_attn_scalar": 8}
ARCHITECTURES = {
    "llama": LlamaConfig(**SHAPE),
    "llama, tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE),
    "mistral, sliding window": MistralConfig(**SHAPE, sliding_window=6),
    "gemma3, sliding window": Gemma3TextConfig(**SHAPE, **KINDS),
    "gemma2, soft caps": Gemma2Config(**SHAPE, **KINDS, attn_logit_softcapping=5.0, final_logit_softcapping=3.0),
}
EXAMPLES = [
    Example((5, 6, 7), ((8, 9), (10, 11, 12))),
    Example((20,), ((3,), (4, 5))),
    Example(tuple(range(30, 41)), (tuple(range(50, 63)), tuple(range(70, 74)))),
]


def tiny(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def plain_logps(model, examples):
    """Each response computed alone, unpacked, through full logits: one [len] tensor a response."""
    found = []
    for e in examples:
        for r in e.responses:
            logps = model(torch.tensor([e.prompt + r])).logits.log_softmax(-1)[0, len(e.prompt) - 1 : -1]
            found.append(logps.gather(1, torch.tensor(r)[:, None])[:, 0])
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_log_probs_and_gradients_equal_plain_ones(name):
    model = tiny(ARCHITECTURES[name])
    plain = torch.cat(plain_logps(model, EXAMPLES))
    weights = torch.linspace(-1, 1, len(plain))
    (plain * weights).sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    packed, _ = LogProbModel(model, chunk=5)(**model_inputs(pack(EXAMPLES), "cpu"))
    assert (packed - plain).abs().max() < 1e-5
    (packed * weights).sum().backward()
    for n, p in model.named_parameters():
        scale = max(1.0, float(expected[n].abs().max()))
        assert float((p.grad - expected[n]).abs().max()) < 1e-5 * scale, n


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_self_test_passes_what_is_right(name):
    assert self_test(tiny(ARCHITECTURES[name]), 97, chunk=5) < 1e-4


def test_the_self_test_refuses_layers_that_carry_state_past_a_response():
    model = AutoModelForCausalLM.from_config(MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=97)).eval()
    with pytest.raises(RuntimeError, match=r"MambaForCausalLM.*cannot be trained packed"):
        self_test(model, 97)


def test_the_self_test_refuses_a_model_that_keeps_its_arguments_from_attention():
    model = tiny(ARCHITECTURES["llama"])
    inner = model.model.forward
    model.model.forward = lambda *a, layout=None, **k: inner(*a, **k)
    with pytest.raises(RuntimeError, match="does not hand its arguments on"):
        self_test(model, 97)


def test_the_block_mask_of_a_gpu_is_what_the_cpu_computes_call_by_call():
    """FlexAttention's mask function against the definition: own prompt, own response, up to itself, in the window."""
    layout = Layout((3, 2), ((2, 3), (1,)), padding=2)
    whose = [(0, 0)] * 3 + [(0, 1)] * 2 + [(0, 2)] * 3 + [(1, 0)] * 2 + [(1, 1)] + [None] * 2
    position = [0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2, 0, 0]
    t = torch.arange(len(whose))
    for window in (None, 2):
        seen = layout.visible(t[:, None], t[None, :], window)
        for q, own in enumerate(whose):
            for k, other in enumerate(whose):
                if own is None or other is None:
                    continue
                expected = own[0] == other[0] and other[1] in (0, own[1]) and k <= q
                expected = expected and (window is None or position[q] - position[k] < window)
                assert bool(seen[q, k]) == expected, (q, k)


@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_gradcheck(softcap, chunk):
    torch.manual_seed(1)
    hidden, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((7, 5), (11, 5), (11,)))
    target = torch.randint(0, 11, (7,))
    assert torch.autograd.gradcheck(
        lambda h, w, b: chunked_logprobs(h, w, b, target, chunk=chunk, scale=0.7, softcap=softcap)[0],
        (hidden, weight, bias),
    )


def test_collision_is_the_log_of_the_summed_squares():
    torch.manual_seed(2)
    hidden, weight, target = torch.randn(7, 5), torch.randn(11, 5), torch.randint(0, 11, (7,))
    _, collision = chunked_logprobs(hidden, weight, None, target, chunk=3, collision=True)
    expected = (hidden @ weight.T).softmax(-1).square().sum(-1).log()
    assert torch.allclose(collision, expected, atol=1e-5)
    assert not collision.requires_grad


def test_a_frozen_projection_gets_no_gradient_and_costs_none():
    weight = torch.randn(11, 5)
    hidden = torch.randn(7, 5, requires_grad=True)
    chunked_logprobs(hidden, weight, None, torch.zeros(7, dtype=torch.int64))[0].sum().backward()
    assert hidden.grad.abs().sum() > 0
    assert weight.grad is None


def test_full_logits_are_never_materialised(monkeypatch):
    sizes = []
    real = torch.Tensor.__matmul__

    def spy(a, b):
        out = real(a, b)
        sizes.append(out.shape)
        return out

    monkeypatch.setattr(torch.Tensor, "__matmul__", spy)
    chunked_logprobs(torch.randn(50, 4), torch.randn(97, 4), None, torch.zeros(50, dtype=torch.int64), chunk=8)
    assert max(s[0] for s in sizes) == 8


def test_responses_do_not_see_each_other():
    """What one response holds does not change another's log-probs, by a single bit."""
    model = LogProbModel(tiny(ARCHITECTURES["llama"]))
    found = []
    for other in ((10, 11, 12), (90, 1, 44)):
        packed = pack([Example((5, 6, 7), ((8, 9), other)), Example((5, 6, 7), (other, (8, 9)))])
        logps, _ = model(**model_inputs(packed, "cpu"))
        found.append(np.concatenate([logps[:2].detach().numpy(), logps[-2:].detach().numpy()]))
    assert (found[0] == found[1]).all()
