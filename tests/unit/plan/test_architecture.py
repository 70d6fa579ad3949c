"""Sizes from config.json: published counts by hand, every family against Transformers' own models."""

import pytest

from pipelines.plan.architecture import PlanError, architecture, read_architecture
from tests.unit.plan.setups import LLAMA_8B, LLAMA_70B, model_directory


def test_llama_3_8b_by_hand():
    arch = architecture(LLAMA_8B)
    attention = 2 * 4096 * 4096 + 2 * 4096 * 1024
    layer = attention + 3 * 4096 * 14336 + 2 * 4096
    assert arch.parameters == 32 * layer + 2 * 128256 * 4096 + 4096 == 8_030_261_248
    assert arch.kv_bytes(1) == 2 * 32 * 8 * 128 * 2 == 131_072
    assert arch.kv_bytes(1000) == 131_072_000
    # 2 FLOPs a weight and token, 4 x 32 layers x 4096 for each token of context, the vocabulary for 3 positions.
    assert arch.forward_flops(10, 3, 100) == 10 * (2 * 32 * layer + 4 * 32 * 4096 * 100) + 3 * 2 * 128256 * 4096


def test_activations_kept_for_backward_by_hand():
    arch = architecture(LLAMA_8B)
    layer = 2 * (4 * 4096 + 2 * (32 + 8) * 128 + 2 * 14336)
    assert arch.activation_bytes(2, checkpointed=False) == 32 * layer
    assert arch.activation_bytes(2, checkpointed=True) == 32 * 2 * 4096 + layer


def test_published_counts():
    assert architecture(LLAMA_70B).parameters == 70_553_706_496
    mistral = LLAMA_8B | {"model_type": "mistral", "vocab_size": 32000, "sliding_window": 4096}
    assert architecture(mistral).parameters == 7_241_732_096
    mixtral = mistral | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    found = architecture(mixtral)
    assert found.parameters == 46_702_792_704
    assert 12e9 < found.trunk + 2 * found.embedding < 13e9  # two of eight experts work on a token


def test_a_window_bounds_the_cache_of_the_layers_that_have_one():
    gemma = LLAMA_8B | {"model_type": "gemma3_text", "sliding_window": 512, "num_hidden_layers": 12, "head_dim": 256}
    arch = architecture(gemma)
    assert arch.windowed_layers == 10  # every sixth layer sees everything
    each = 2 * 8 * 256 * 2
    assert arch.kv_bytes(2000) == each * (2 * 2000 + 10 * 512)
    assert (
        architecture(gemma | {"layer_types": ["sliding_attention"] * 5 + ["full_attention"] * 7}).windowed_layers == 5
    )


SMALL = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 97, "head_dim": 16, "pad_token_id": 0}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "tie_word_embeddings": True},
        {"model_type": "llama", "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
        {"model_type": "mistral", "tie_word_embeddings": False},
        {"model_type": "qwen2", "tie_word_embeddings": False, "head_dim": 12},
        {"model_type": "qwen3", "tie_word_embeddings": True},
        {"model_type": "gemma", "tie_word_embeddings": True},
        {"model_type": "gemma2", "tie_word_embeddings": True},
        {"model_type": "gemma3_text", "tie_word_embeddings": True},
        {"model_type": "phi3", "tie_word_embeddings": False, "head_dim": 12},
        {"model_type": "mixtral", "tie_word_embeddings": False, **EXPERTS},
        {"model_type": "qwen3_moe", "tie_word_embeddings": False, "num_experts": 4, "num_experts_per_tok": 2,
         "moe_intermediate_size": 24, "decoder_sparse_step": 1, "mlp_only_layers": []},
    ],
    ids=lambda c: c["model_type"],
)  # fmt: skip
def test_every_family_counts_as_transformers_does(config):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = SMALL | config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**raw))
    assert architecture(raw).parameters == sum(p.numel() for p in model.parameters())
    if config["model_type"] == "llama" and not config["tie_word_embeddings"]:
        linear = [m for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
        assert architecture(raw).adapted == sum(m.in_features + m.out_features for m in linear)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(PlanError, match=r"config.json: No such file.*model.path is to hold"):
        read_architecture(str(tmp_path))
    assert read_architecture(str(model_directory(tmp_path))).layers == 32
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(PlanError, match="holds no JSON object"):
        read_architecture(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(PlanError, match="is not JSON"):
        read_architecture(str(tmp_path))
    with pytest.raises(PlanError, match=r"model_type = 'mamba' is not known here; known: gemma, "):
        architecture({"model_type": "mamba"})
    with pytest.raises(PlanError, match="num_attention_heads is missing"):
        architecture({"model_type": "llama", "hidden_size": 8})


def test_the_text_part_of_a_multimodal_model():
    assert architecture({"model_type": "gemma3", "text_config": LLAMA_8B}).parameters == 8_030_261_248
