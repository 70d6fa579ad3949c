"""Reward models on real ZeRO-3 against plain computation. Without Ray."""

import pytest


@pytest.fixture
def found(ranks) -> dict[int, dict]:
    return {count: parts["reward_worker"] for count, parts in ranks.items()}


def test_losses_and_gradients_equal_plain_padded_computation(found):
    """Llama, Gemma-3, Gemma-2; head and trunk; several micro-batches, or one; checkpointing."""
    for workers in (1, 2):
        assert len(found[workers]["differences"]) == 5
        for case, difference in found[workers]["differences"].items():
            assert difference < 1e-5, (workers, case)


def test_adapters_and_a_fresh_head_train_publish_merged_and_resume(found):
    for workers in (1, 2):
        lora = found[workers]["lora"]
        assert 0.05 < lora["head"] < 0.2  # drawn with the architecture's initializer_range of 0.1
        assert lora["losses"][1] < lora["losses"][0] / 2
        assert lora["plain"] == pytest.approx(lora["losses"][1], abs=1e-5)  # plain Transformers on what was published
        assert lora["resumed"] == pytest.approx(lora["losses"][1], abs=1e-6)
        assert {"q_proj", "down_proj", "score"} <= set(lora["changed"])
        assert not {"embed_tokens", "norm", "input_layernorm"} & set(lora["changed"])
    assert found[1]["lora"]["losses"] == pytest.approx(found[2]["lora"]["losses"], abs=1e-5)
