"""A reward model on packed rows equals plain Transformers; what it trains on ends where its users' conversations do."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    Qwen3Config,
)

from configs.loading import ConfigError, load_config
from configs.runs import OfflineConfig, RewardModelConfig
from pipelines.data import DataRules, read_items
from pipelines.data.encode import model_encoder
from pipelines.export import export_weights
from pipelines.judging.reward_model import conversations, padding_token
from preference.batching import Example, pack
from preference.logprobs import model_inputs
from preference.objectives import REGISTRY
from preference.reward_model import RewardModel, bradley_terry, read_length, readable
from tests.tiny import tiny_model
from tests.unit.test_config import CONFIGS

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 97,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "num_labels": 1,
}
HEADS = {"num_key_value_heads": 2, "head_dim": 8}
KINDS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6, "query_pre_attn_scalar": 8}
ARCHITECTURES = {
    "llama": LlamaConfig(**SHAPE, **HEADS),
    "qwen3": Qwen3Config(**SHAPE, **HEADS),
    "gemma3, sliding window": Gemma3TextConfig(**SHAPE, **HEADS, **KINDS),
    "gemma2, soft caps": Gemma2Config(**SHAPE, **HEADS, **KINDS, attn_logit_softcapping=5.0),
    "gpt-neox": GPTNeoXConfig(**SHAPE),
}
EXAMPLES = [((5, 6, 7), ((8,), (10, 11, 12))), ((20,), ((3, 4), (4, 5, 6, 7))), (tuple(range(30, 41)), ((9, 8), (7,)))]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_scores_and_gradients_equal_plain_ones(name):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(ARCHITECTURES[name], attn_implementation="eager").eval()
    rows = [prompt + response for prompt, responses in EXAMPLES for response in responses]
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    plain = model(ids, attention_mask=(ids != 0).long()).logits[:, 0]
    weights = torch.linspace(-1, 1, len(rows))
    (plain * weights).sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    packed = pack([Example(p, tuple(readable(r, 0) for r in responses)) for p, responses in EXAMPLES])
    values, collision = RewardModel(model)(**model_inputs(packed, "cpu"))
    scores = torch.stack([v.sum() for v in values.split(packed.lengths.tolist())])
    assert values.dtype == torch.float32
    assert int((values != 0).sum()) == len(rows)
    assert len(collision) == 0
    assert (scores - plain).abs().max() < 1e-5
    (scores * weights).sum().backward()
    assert {n for n, _ in model.named_parameters()} == set(expected)
    for n, p in model.named_parameters():
        scale = max(1.0, float(expected[n].abs().max()))
        assert float((p.grad - expected[n]).abs().max()) < 1e-5 * scale, n


def test_scores_of_a_bf16_model_are_read_in_fp32():
    torch.manual_seed(0)
    config = ARCHITECTURES["llama"]
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16).eval()
    scores, _ = RewardModel(model)(**model_inputs(pack([Example((5, 6), ((7, 8), (9, 8)))]), "cpu"))
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())


@given(st.lists(st.integers(0, 3), max_size=8), st.sampled_from([None, 0, 3]))
def test_the_score_stands_where_transformers_reads_it(ids, pad):
    end = read_length(ids, pad)
    assert all(i == pad for i in ids[end:])
    assert end == 0 or ids[end - 1] != pad
    read = readable(ids, pad)
    assert read[:-1] == tuple(ids[:end])
    assert len(read) == (end + 1 if end else 0)


class Scores:
    """What the loss takes of a batch."""

    def __init__(self, chosen: list[float], rejected: list[float]) -> None:
        self.chosen: Tensor = torch.tensor(chosen, dtype=torch.float64, requires_grad=True)
        self.rejected: Tensor = torch.tensor(rejected, dtype=torch.float64, requires_grad=True)


def test_bradley_terry_by_hand():
    losses, figures = bradley_terry(Scores([0.0, 2.0], [0.0, 1.0]), None)
    assert losses.tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(-1))])
    assert figures == {}
    losses, _ = bradley_terry(Scores([2.0], [1.0]), None, margin=1.0, centring=0.01)
    assert losses.tolist() == pytest.approx([math.log(2) + 0.01 * 9])


def test_only_centring_cares_where_the_scores_are():
    near, far = Scores([1.0], [-1.0]), Scores([101.0], [99.0])
    assert bradley_terry(near, None)[0].item() == pytest.approx(bradley_terry(far, None)[0].item())
    assert bradley_terry(near, None, centring=0.1)[0].item() == pytest.approx(bradley_terry(near, None)[0].item())
    pulled = bradley_terry(far, None, centring=0.1)[0]
    pulled.sum().backward()
    assert far.chosen.grad.item() > 0
    assert far.rejected.grad.item() > 0  # descent lowers both


def test_no_policy_can_ask_for_the_loss_of_a_reward_model():
    assert "bradley_terry" not in REGISTRY
    shipped = next(p for p in CONFIGS if p.name == "offline.yaml")
    with pytest.raises(ConfigError, match="unknown name 'bradley_terry'"):
        load_config(OfflineConfig, shipped, ["objective={name: bradley_terry}"])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


class Said:
    """A progress display that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def settings(model, *overrides: str) -> RewardModelConfig:
    shipped = next(p for p in CONFIGS if p.name == "reward_model.yaml")
    return load_config(RewardModelConfig, shipped, [f"model.path={model}", "data.train=/dev/null", *overrides])


def items(tmp_path, model, *records):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return read_items(tmp_path / "data.jsonl", model_encoder(str(model), DataRules()))


def test_pairs_are_read_to_the_end_of_the_rendered_conversation(tmp_path, model):
    pair = {"prompt": "What is it?", "chosen": "A hill.", "rejected": "Nothing at all."}
    loaded = conversations(items(tmp_path, model, pair), settings(model), Said())
    tokenizer = AutoTokenizer.from_pretrained(model)
    (item,) = loaded.items
    for response in item.responses:
        turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": response.text}]
        whole = tokenizer.apply_chat_template(turns, return_dict=False)
        # The last token is packed to have the one before it fed; it is the end of what a user of the model renders.
        assert [*item.prompt.token_ids, *response.token_ids[:-1]] == whole


def test_what_does_not_fit_with_the_end_of_the_conversation_is_left_out_and_counted(tmp_path, model):
    short = {"prompt": "What?", "chosen": "A.", "rejected": "B."}
    long = {"prompt": "What?", "chosen": "The capital of France " * 20, "rejected": "B."}
    loaded, said = items(tmp_path, model, short, long), Said()
    tight = settings(
        model, "batching.micro_batch_tokens=60", "data.max_prompt_tokens=20", "data.max_response_tokens=20"
    )
    kept = conversations(loaded, tight, said)
    assert [i.chosen.text for i in kept.items] == ["A."]
    assert "with the end of the conversation, these exceed batching.micro_batch_tokens = 60: 1 of 2" in said.lines[0]
    with pytest.raises(ConfigError, match=r"no pair of .* fits"):
        conversations(items(tmp_path, model, long), tight, Said())


def test_ties_teach_nothing_and_are_counted(tmp_path, model):
    clear = {"prompt": "What?", "chosen": "A.", "rejected": "B."}
    tie = {"prompt": "Who?", "chosen": "A.", "rejected": "B.", "tied": True, "margin": 0, "probability": 0.5}
    said = Said()
    kept = conversations(items(tmp_path, model, clear, tie), settings(model), said)
    assert [i.prompt.text for i in kept.items] == ["What?"]
    assert "1 of 2 pairs are ties" in said.lines[0]


def test_labels_are_no_pairs(tmp_path, model):
    label = {"prompt": "What?", "completion": "A.", "label": True}
    with pytest.raises(ConfigError, match=r"learns from pairs, but .* holds labels"):
        conversations(items(tmp_path, model, label), settings(model), Said())


def test_a_reward_model_without_a_chat_template_is_refused(model):
    with pytest.raises(ConfigError, match=r"data\.template = none.*chat_template\.jinja"):
        settings(model, "data.template=none")


def test_what_is_exported_is_a_plain_sequence_classifier(tmp_path, model):
    """Configuration, tokenizer and head; a policy's export stays a policy's."""
    torch.manual_seed(0)
    trained = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1).eval()
    out = export_weights(trained.state_dict().items(), model, tmp_path / "reward")
    loaded, loading = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert loaded.config.num_labels == 1
    assert loaded.config.architectures == ["LlamaForSequenceClassification"]
    assert not loading["missing_keys"]
    ids = torch.tensor([[5, 6, 7]])
    assert torch.allclose(loaded.eval()(ids).logits, trained(ids).logits, atol=1e-6)
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert padding_token(out) == padding_token(model) == 2
    policy = export_weights([("model.norm.weight", torch.ones(2))], model, tmp_path / "policy")
    assert json.loads((policy / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
