"""Chunked, packed log-probs equal plain logits; gradients too; no full logits, no foreign tokens visible."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from preference.batching import Example, pack_rows
from preference.logprobs import LogProbModel, attention_mask, chunked_logprobs, model_inputs, self_test

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "head_dim": 8,
}


def tiny(config_class, tied):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        config_class(**SHAPE, tie_word_embeddings=tied, initializer_range=0.3)
    ).eval()


@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen3Config])
@pytest.mark.parametrize("tied", [True, False])
def test_packed_equals_plain(config_class, tied):
    assert self_test(tiny(config_class, tied), 97, chunk=5) < 1e-4


def test_self_test_refuses_a_model_that_ignores_the_mask():
    model = tiny(LlamaConfig, True)
    inner = model.model.forward
    model.model.forward = lambda *a, attention_mask=None, **k: inner(*a, **k)
    with pytest.raises(RuntimeError, match="cannot be trained packed"):
        self_test(model, 97)


@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_gradcheck(softcap, chunk):
    torch.manual_seed(1)
    hidden, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((7, 5), (11, 5), (11,)))
    target = torch.randint(0, 11, (7,))
    assert torch.autograd.gradcheck(
        lambda h, w, b: chunked_logprobs(h, w, b, target, chunk=chunk, scale=0.7, softcap=softcap),
        (hidden, weight, bias),
    )


def test_packed_gradients_equal_plain_gradients():
    examples = [Example((5, 6, 7), ((8, 9), (10, 11, 12))), Example((20,), ((3,), (4, 5)))]
    model = tiny(LlamaConfig, True)
    total = torch.zeros(())
    for e in examples:
        for r in e.responses:
            tokens = torch.tensor([e.prompt + r])
            logps = model(tokens).logits.log_softmax(-1)[0, len(e.prompt) - 1 : -1]
            total = total + logps.gather(1, torch.tensor(r)[:, None]).sum()
    total.backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    wrapped = LogProbModel(model, chunk=2)
    packed = wrapped(**model_inputs(pack_rows(examples, [[0, 1]]), torch.float32, "cpu")).sum()
    packed.backward()
    assert packed.item() == pytest.approx(total.item(), abs=1e-4)
    for name, parameter in wrapped.lm.named_parameters():
        assert torch.allclose(parameter.grad, plain[name], atol=1e-4), name


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
    mask = attention_mask(pack_rows([Example((1, 2), ((3, 4), (5, 6)))], [[0]]), torch.float32, "cpu")[0, 0]
    visible = (mask == 0).numpy()
    expected = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]], bool)
    assert (visible == expected).all()
