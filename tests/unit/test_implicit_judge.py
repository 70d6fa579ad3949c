"""Implicit rewards are beta times the log-ratio of two checkpoints, row by row, whatever the batch."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.judges.implicit import ImplicitActor
from configs.judges import ImplicitJudge
from preference.types import (
    Candidate,
    CandidateGroup,
    FinishReason,
    Message,
    Prompt,
    Rating,
    Version,
    Written,
)
from tests.tiny import tiny_model

TEXTS = ("It is wonderful.", "No.", "The capital of France is Paris, and Paris stands on the river Seine.", "A hill")
QUESTION = "What is the capital of France?"
IM_END = 2


@pytest.fixture(autouse=True)
def output_stays(monkeypatch):
    monkeypatch.setattr("actors.judges.rating.redirect_output", lambda path: None)


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """(trained, reference): two models with one tokenizer."""
    directory = tmp_path_factory.mktemp("policies")
    return tiny_model(directory / "trained", seed=1), tiny_model(directory / "reference", seed=0)


def group(*texts, prompt_ids=()):
    prompt = Prompt("p", (Message("user", QUESTION),), tuple(prompt_ids))
    return CandidateGroup(prompt, tuple(Written(f"w{i}", "p", (1,), text) for i, text in enumerate(texts)))


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
