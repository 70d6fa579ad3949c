"""A tied embedding adds its gradient to the projection's, or stays as it was."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from preference.logprobs import LogProbModel
from preference.tied import share_gradient
from tests.unit.test_logprobs import KINDS, SHAPE

IDS = torch.tensor([[5, 0, 5, 9, 5, 0]])


def gradient(embedding: nn.Embedding) -> torch.Tensor:
    """Of the matrix, read at IDS and multiplied with: a trunk and a head."""
    hidden = torch.tanh(embedding(IDS)[0])
    ((hidden @ embedding.weight.T) * torch.linspace(-1, 1, 12)).sum().backward()
    assert embedding.weight.grad is not None
    found = embedding.weight.grad.clone()
    embedding.weight.grad = None
    return found


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("padding", [None, 0])
def test_the_gradient_is_autograds_own(scaled: bool, padding: int | None) -> None:
    torch.manual_seed(0)
    kinds = {False: nn.Embedding, True: lambda *a, **k: Gemma3TextScaledWordEmbedding(*a, **k, embed_scale=3.0)}
    embedding = kinds[scaled](12, 4, padding_idx=padding)
    expected = gradient(embedding)
    assert share_gradient(embedding)
    for _ in range(2):  # nothing stays from one backward to the next
        torch.testing.assert_close(gradient(embedding), expected)


def test_only_tied_matrices_share() -> None:
    def engaged(config: LlamaConfig | Gemma3TextConfig) -> bool:
        model = LogProbModel(AutoModelForCausalLM.from_config(config))
        return "forward" in vars(model.lm.get_input_embeddings())

    assert engaged(LlamaConfig(**SHAPE, tie_word_embeddings=True))
    assert engaged(Gemma3TextConfig(**SHAPE, **KINDS))
    assert not engaged(LlamaConfig(**SHAPE))


def test_an_embedding_of_another_kind_keeps_its_forward() -> None:
    class Shifted(nn.Embedding):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) + 1

    assert not share_gradient(Shifted(12, 4))
    assert not share_gradient(nn.Embedding(12, 4, max_norm=1.0))
    assert not share_gradient(nn.Embedding(12, 4).requires_grad_(False))
