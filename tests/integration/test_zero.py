"""The ZeRO-3 trainer against plain computation: padded, unsharded, one process, full logits. Without Ray."""

import pytest


@pytest.fixture
def found(ranks) -> dict[int, dict]:
    return {count: parts["zero_worker"] for count, parts in ranks.items()}


def test_losses_and_gradients_equal_plain_padded_computation(found):
    """Llama, Qwen3, Gemma-3 (sliding windows), Gemma-2 (soft caps); several micro-batches, or one; checkpointing."""
    for workers in (1, 2):
        assert len(found[workers]["differences"]) == 6
        for case, difference in found[workers]["differences"].items():
            assert difference < 1e-5, (workers, case)


def test_statistics_of_the_whole_batch_do_not_depend_on_its_layout(found):
    """KTO's z, BCO's mean, AOT's order, beta-DPO's average: three steps, 1 and 2 workers, 1 and more micro-batches."""
    expected = found[1]["statistics"]
    for objective in ("kto", "bco", "aot", "beta_dpo"):
        whole = expected[f"{objective} budget 400"]
        assert len(set(whole)) == 3
        for workers in (1, 2):
            for budget in (400, 64):
                losses = found[workers]["statistics"][f"{objective} budget {budget}"]
                assert losses == pytest.approx(whole, rel=1e-4, abs=1e-6)


def test_adapters_train_publish_merged_and_resume(found):
    for workers in (1, 2):
        lora = found[workers]["lora"]
        assert lora["losses"][1] < lora["losses"][0] / 2
        assert lora["merged"] == pytest.approx(lora["evaluated"], abs=1e-6)  # plain Transformers on what was published
        assert lora["resumed"] == pytest.approx(lora["following"], abs=1e-6)
        assert lora["exported"] < 1e-6  # what a checkpoint gives, adapters merged
        assert lora["names"]
        assert {"q_proj", "down_proj"} <= set(lora["changed"])
        assert not {"embed_tokens", "norm", "input_layernorm"} & set(lora["changed"])
