"""Reward-model judges equal plain Transformers, row by row; what they cannot score fails by name."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from actors.judges.errors import JudgeError
from actors.judges.reward_model import Classifier, RewardModelActor, batches
from configs.judges import RewardModelJudge
from preference.types import (
    CandidateGroup,
    JudgeFailure,
    Message,
    Outcome,
    Prompt,
    Rating,
    Written,
)
from tests.tiny import tiny_model

TEXTS = ("It is wonderful.", "No.", "The capital of France is Paris, and Paris stands on the river Seine.", "A hill")
QUESTION = "What is the capital of France?"
IM_END = 2
ENDS_IN_PADDING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def output_stays(monkeypatch):
    monkeypatch.setattr("actors.judges.rating.redirect_output", lambda path: None)


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """(trained, reference): two models with one tokenizer."""
    directory = tmp_path_factory.mktemp("policies")
    return tiny_model(directory / "trained", seed=1), tiny_model(directory / "reference", seed=0)


def classifier(policy, out, arch="llama", template="", **settings):
    """A reward model in the directory ``out``, as plain Transformers writes it."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(policy, **{"num_labels": 1, **settings})
    tokenizer = AutoTokenizer.from_pretrained(policy)
    if template != "":
        tokenizer.chat_template = template
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def reward_model(policies, tmp_path_factory):
    return classifier(policies[0], tmp_path_factory.mktemp("reward") / "model")


def judge(model, **knobs):
    return RewardModelJudge(kind="reward_model", model=str(model), **knobs)


def plain_scores(path, texts):
    """One conversation at a time through Transformers' own forward."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path)
    scores = []
    for text in texts:
        turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": text}]
        ids = tokenizer.apply_chat_template(turns, return_dict=False)
        with torch.no_grad():
            scores.append(float(model(torch.tensor([ids])).logits[0, 0]))
    return scores


def group(*texts, prompt_ids=()):
    prompt = Prompt("p", (Message("user", QUESTION),), tuple(prompt_ids))
    return CandidateGroup(prompt, tuple(Written(f"w{i}", "p", (1,), text) for i, text in enumerate(texts)))


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_batches_hold_every_row_once_and_no_more_than_the_budget(lengths, budget):
    found = batches(lengths, budget)
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@pytest.mark.parametrize("batch_tokens", [2048, 100])
@pytest.mark.parametrize(
    ("template", "settings"),
    [
        ("", {}),
        (ENDS_IN_PADDING, {}),  # read at the token before, as Transformers does
        ("", {"pad_token_id": None}),  # Transformers itself would refuse to batch it
        ("", {"pad_token_id": 0}),
    ],
    ids=["as trained", "template ends with the padding token", "no padding token", "padding token of its own"],
)
def test_scores_are_those_of_plain_transformers_however_they_are_batched(
    policies, tmp_path, batch_tokens, template, settings
):
    model = classifier(policies[0], tmp_path / "model", template=template)
    if settings:
        config = AutoModelForSequenceClassification.from_pretrained(model)
        config.config.pad_token_id = settings["pad_token_id"]
        config.save_pretrained(model)
    actor = RewardModelActor(judge(model, batch_tokens=batch_tokens, max_tokens=100), 1, False, "")
    (found,) = actor.rate([group(*TEXTS)])
    assert [r.candidate_id for r in found] == ["w0", "w1", "w2", "w3"]
    assert [r.value for r in found] == pytest.approx(plain_scores(model, TEXTS), abs=1e-5)
    assert len({r.value for r in found}) == len(TEXTS)


def test_an_encoder_pools_by_itself(policies, tmp_path):
    from transformers import BertConfig

    config = BertConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=1,
        initializer_range=0.3, pad_token_id=0, max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(policies[0]).save_pretrained(tmp_path)
    (found,) = RewardModelActor(judge(tmp_path, max_tokens=128), 1, False, "").rate([group(*TEXTS)])
    assert [r.value for r in found] == pytest.approx(plain_scores(tmp_path, TEXTS), abs=1e-5)


def test_what_is_too_long_fails_alone_and_names_the_field(reward_model):
    actor = RewardModelActor(judge(reward_model, max_tokens=40), 1, False, "")
    (found,) = actor.rate([group("No.", TEXTS[2] * 3)])
    assert isinstance(found[0], Rating)
    assert isinstance(found[1], JudgeFailure)
    assert found[1].candidate_ids == ("w1",)
    assert found[1].outcome is Outcome.FAILED
    assert "judge.max_tokens = 40" in found[1].error


def test_a_nan_is_a_failure(policies, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(classifier(policies[0], tmp_path))
    model.score.weight.data[0, 0] = math.nan
    model.save_pretrained(tmp_path)
    (found,) = RewardModelActor(judge(tmp_path), 1, False, "").rate([group("No.")])
    assert isinstance(found[0], JudgeFailure)
    assert "nan" in found[0].error


def test_a_template_that_refuses_is_a_failure(policies, tmp_path):
    model = classifier(policies[0], tmp_path, template="{{ raise_exception('no assistant here') }}")
    (found,) = RewardModelActor(judge(model), 1, False, "").rate([group("No.")])
    assert "no assistant here" in found[0].error


def test_models_that_are_no_judges_are_refused_with_the_fix(policies, tmp_path, reward_model):
    several = classifier(policies[0], tmp_path / "several", num_labels=3)
    mute = classifier(policies[0], tmp_path / "mute", template=None)
    for model, words in (
        (several, ["num_labels = 3", "num_labels = 1", "kind=rule"]),
        (policies[0], ["LlamaForCausalLM", "rondo reward-model", "kind=implicit"]),
        (mute, ["no chat template", "chat_template.jinja"]),
        (tmp_path / "absent", ["cannot be loaded"]),
    ):
        started = RewardModelActor(judge(model), 1, False, "").started()
        for word in [f"judge.model = {model}", *words]:
            assert word in started.refusal
    with pytest.raises(JudgeError, match=r"judge.max_tokens = 4000 .*judge.max_tokens=2048"):
        Classifier(judge(reward_model, max_tokens=4000))


def test_the_longest_conversation_has_to_fit_one_pass():
    with pytest.raises(ValidationError, match=r"max_tokens \(5000\) exceeds judge.batch_tokens \(4096\)"):
        judge("m", max_tokens=5000)


def test_the_weights_are_part_of_a_judges_definition(policies, tmp_path, reward_model):
    same = RewardModelActor(judge(reward_model), 1, False, "").started().identity
    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    other = tmp_path / "other"
    classifier(policies[0], other)
    assert RewardModelActor(judge(other), 1, False, "").started().identity == same  # a copy elsewhere
    model.score.weight.data.neg_()
    model.save_pretrained(other)
    assert RewardModelActor(judge(other), 1, False, "").started().identity != same
