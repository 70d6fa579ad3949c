"""Reward-model and implicit-reward judges equal plain computation, row by row; what they cannot score fails by name."""

import asyncio
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from actors.judges.batched import Batched
from actors.judges.errors import JudgeError
from actors.judges.implicit import ImplicitActor
from actors.judges.reward_model import Classifier, RewardModelActor, batches
from actors.faults import StageFailed
from configs.judges import ImplicitJudge, RewardModelJudge
from preference.types import (
    Candidate,
    CandidateGroup,
    FinishReason,
    JudgeFailure,
    Message,
    Outcome,
    Prompt,
    Rating,
    Version,
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


# -- implicit rewards ------------------------------------------------------------------------------------------------


def implicit(policies, **knobs):
    return ImplicitJudge(kind="implicit", model=str(policies[0]), reference=str(policies[1]), **knobs)


@cache
def loaded(path):
    return AutoModelForCausalLM.from_pretrained(path)


def log_prob(path, prompt, response):
    with torch.no_grad():
        logits = loaded(path)(torch.tensor([[*prompt, *response]])).logits[0]
    logps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return float(logps.gather(1, torch.tensor(response)[:, None]).sum())


def rendered(policies, text=None):
    """(prompt ids, ids of the answer up to its end of turn)."""
    tokenizer = AutoTokenizer.from_pretrained(policies[0])
    turns = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    answer = tokenizer.encode(text or "", add_special_tokens=False)
    return tuple(prompt), (*answer, IM_END)


def sampled(name, ids, text, finish=FinishReason.STOP):
    version = Version(0, 0)
    return Candidate(name, "p", 0, ids, (-1.0,) * len(ids), text, finish, version, version)


@pytest.mark.parametrize("batch_tokens", [4096, 64])
def test_implicit_rewards_are_beta_times_the_log_ratio_of_the_sampled_tokens(policies, batch_tokens):
    prompt_ids, answer = rendered(policies, "Paris.")
    tokenizer = AutoTokenizer.from_pretrained(policies[0])
    letters = (*(i for c in "Paris." for i in tokenizer.encode(c, add_special_tokens=False)), IM_END)
    assert letters != answer  # the same text in other tokens, as a policy may sample it
    prompt = Prompt("p", (Message("user", QUESTION),), prompt_ids)
    candidates = (sampled("a", answer, "Paris."), sampled("b", letters, "Paris."), sampled("c", (7, 8), "'("))
    candidates = (*candidates[:2], replace(candidates[2], text=tokenizer.decode([7, 8])))
    for normalised in (False, True):
        knobs = {"beta": 0.3, "length_normalised": normalised, "batch_tokens": batch_tokens}
        (found,) = ImplicitActor(implicit(policies, **knobs), 1, False, "").rate([CandidateGroup(prompt, candidates)])
        for rating, candidate in zip(found, candidates, strict=True):
            ids = candidate.token_ids
            ratio = log_prob(policies[0], prompt_ids, ids) - log_prob(policies[1], prompt_ids, ids)
            assert rating.value == pytest.approx(0.3 * ratio / (len(ids) if normalised else 1), abs=1e-4)


def test_foreign_tokens_are_tokenised_anew_and_cut_off_answers_stay_cut_off(policies):
    prompt_ids, answer = rendered(policies, "Paris.")
    prompt = Prompt("p", (Message("user", QUESTION),), (9, 9, 9))  # another tokenizer's
    candidates = (sampled("a", (600, 601), "Paris."), sampled("b", (600,), "Paris.", FinishReason.LENGTH))
    (found,) = ImplicitActor(implicit(policies, beta=1.0), 1, False, "").rate([CandidateGroup(prompt, candidates)])
    for rating, ids in zip(found, (answer, answer[:-1]), strict=True):
        ratio = log_prob(policies[0], prompt_ids, ids) - log_prob(policies[1], prompt_ids, ids)
        assert rating.value == pytest.approx(ratio, abs=1e-4)


def test_a_model_against_itself_rewards_nothing(policies):
    one = (policies[0], policies[0])
    groups = [group(*TEXTS), group("Yes.")]  # groups of unlike size go through together
    for found in ImplicitActor(implicit(one), 1, False, "").rate(groups):
        assert all(r.value == 0.0 for r in found)


def test_implicit_judges_name_what_does_not_fit(policies, tmp_path):
    actor = ImplicitActor(implicit(policies, batch_tokens=40), 1, False, "")
    asked = group("No.", TEXTS[2] * 3)
    nothing = sampled("nothing", (), "", FinishReason.LENGTH)
    (found,) = actor.rate([replace(asked, candidates=(*asked.candidates, nothing))])
    assert isinstance(found[0], Rating)
    assert "judge.batch_tokens = 40" in found[1].error
    assert "empty" in found[2].error
    other = tiny_model(tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"<|endoftext|>"', '"<|padding|>"'))
    refusal = ImplicitActor(implicit((policies[0], other)), 1, False, "").started().refusal
    assert f"judge.reference = {other} has another vocabulary" in refusal
    refusal = ImplicitActor(implicit((policies[0], tmp_path / "absent")), 1, False, "").started().refusal
    assert f"judge.reference = {tmp_path / 'absent'} cannot be used" in refusal


# -- the pool --------------------------------------------------------------------------------------------------------


class Asked:
    """Stands for actors: remembers what each was given, and answers when it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self.pending: list[asyncio.Future[list[int]]] = []

    def submit(self, actor, questions):
        self.calls.append((actor, questions))
        self.pending.append(asyncio.get_running_loop().create_future())
        return self.pending[-1]

    def answer(self, call):
        self.pending[call].set_result([10 * q for q in self.calls[call][1]])


async def until(condition):
    while not condition():
        await asyncio.sleep(0)


def test_what_waits_for_an_actor_goes_to_it_together():
    async def scenario():
        asked = Asked()
        pool = Batched("judge", ["a", "b"], asked.submit, 60)
        first = [asyncio.ensure_future(pool.ask(i)) for i in range(5)]
        await until(lambda: len(asked.calls) == 2)
        assert asked.calls == [("a", [0, 1, 2]), ("b", [3, 4])]  # an even share of what was asked at once
        later = [asyncio.ensure_future(pool.ask(i)) for i in range(5, 9)]
        asked.answer(1)
        await until(lambda: len(asked.calls) == 3)
        assert asked.calls[2] == ("b", [5, 6, 7, 8])
        asked.answer(2)
        asked.answer(0)
        assert await asyncio.gather(*first, *later) == [10 * i for i in range(9)]

    asyncio.run(scenario())


def test_an_error_reaches_everyone_who_asked_and_the_pool_goes_on():
    async def scenario():
        asked = Asked()
        pool = Batched("judge x", ["a"], asked.submit, 60)
        first = [asyncio.ensure_future(pool.ask(i)) for i in range(2)]
        await until(lambda: asked.pending)
        asked.pending[0].set_exception(StageFailed("gone"))
        assert all(isinstance(e, StageFailed) for e in await asyncio.gather(*first, return_exceptions=True))
        again = asyncio.ensure_future(pool.ask(2))
        await until(lambda: len(asked.pending) == 2)
        asked.answer(1)
        assert await again == 20

    asyncio.run(scenario())
