"""The ZeRO-3 trainer against plain computation: padded, unsharded, one process, full logits. Without Ray."""

import pytest

from tests.integration.conftest import in_ranks


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, dict]:
    return in_ranks("tests.integration.workers", tmp_path_factory.mktemp("ranks"), (1, 2))


@pytest.fixture
def policies(found) -> dict[int, dict]:
    return {count: parts["zero_worker"] for count, parts in found.items()}


@pytest.fixture
def reward_models(found) -> dict[int, dict]:
    return {count: parts["reward_worker"] for count, parts in found.items()}


def test_losses_and_gradients_equal_plain_padded_computation(policies):
    """Llama, Qwen3, Gemma-3 (sliding windows), Gemma-2 (soft caps); several micro-batches, or one; checkpointing."""
    for workers in (1, 2):
        assert len(policies[workers]["differences"]) == 6
        for case, difference in policies[workers]["differences"].items():
            assert difference < 1e-5, (workers, case)


def test_statistics_of_the_whole_batch_do_not_depend_on_its_layout(policies):
    """KTO's z, BCO's mean, AOT's order, beta-DPO's average: three steps, 1 and 2 workers, 1 and more micro-batches."""
    expected = policies[1]["statistics"]
    for objective in ("kto", "bco", "aot", "beta_dpo"):
        whole = expected[f"{objective} budget 400"]
        assert len(set(whole)) == 3
        for workers in (1, 2):
            for budget in (400, 64):
                losses = policies[workers]["statistics"][f"{objective} budget {budget}"]
                assert losses == pytest.approx(whole, rel=1e-4, abs=1e-6)


def test_adapters_train_publish_merged_and_resume(policies):
    for workers in (1, 2):
        lora = policies[workers]["lora"]
        assert lora["losses"][1] < lora["losses"][0] / 2
        assert lora["merged"] == pytest.approx(lora["evaluated"], abs=1e-6)  # plain Transformers on what was published
        assert lora["resumed"] == pytest.approx(lora["following"], abs=1e-6)
        assert lora["exported"] < 1e-6  # what a checkpoint gives, adapters merged
        assert lora["names"]
        assert {"q_proj", "down_proj"} <= set(lora["changed"])
        assert not {"embed_tokens", "norm", "input_layernorm"} & set(lora["changed"])


def test_a_reward_models_losses_and_gradients_equal_plain_padded_computation(reward_models):
    """Llama, Gemma-3, Gemma-2; head and trunk; several micro-batches, or one; checkpointing."""
    for workers in (1, 2):
        assert len(reward_models[workers]["differences"]) == 5
        for case, difference in reward_models[workers]["differences"].items():
            assert difference < 1e-5, (workers, case)


def test_adapters_and_a_fresh_head_train_publish_merged_and_resume(reward_models):
    for workers in (1, 2):
        lora = reward_models[workers]["lora"]
        assert 0.05 < lora["head"] < 0.2  # drawn with the architecture's initializer_range of 0.1
        assert lora["losses"][1] < lora["losses"][0] / 2
        assert lora["plain"] == pytest.approx(lora["losses"][1], abs=1e-5)  # plain Transformers on what was published
        assert lora["resumed"] == pytest.approx(lora["losses"][1], abs=1e-6)
        assert {"q_proj", "down_proj", "score"} <= set(lora["changed"])
        assert not {"embed_tokens", "norm", "input_layernorm"} & set(lora["changed"])
    assert reward_models[1]["lora"]["losses"] == pytest.approx(reward_models[2]["lora"]["losses"], abs=1e-5)
