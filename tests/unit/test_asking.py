"""Questions as requests to an engine, and its answers as replies: rationales first, what does not fit left out."""

from __future__ import annotations

import math

import pytest

from actors.judges.asking import Asking, Asks, answered
from actors.judges.encoding import QuestionEncoder
from actors.judges.replies import Answered, Unanswered
from actors.requests import Chosen, Sampled
from preference.types import FinishReason, Version
from tests.tiny import _tokenizer
from tests.unit.test_judge_questions import asked, match


@pytest.fixture(scope="module")
def tokenizer():
    return _tokenizer()


@pytest.fixture(scope="module")
def directory(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(path)
    return str(path)


def asking(directory, questions, longest=4096):
    return Asking(Asks(questions.labels, questions.rationale, questions.probe), directory, longest, "the.knob", "me")


def replied(put, *engine):
    """What ``put`` returns, and all that it asked of the engine; the engine's answers to its requests by turns."""
    asked_for, turns = [], iter(engine)

    def answer(requests):
        asked_for.append(list(requests))
        return [finish(r) for finish, r in zip([next(turns)] * len(requests), requests, strict=True)]

    return answered(put, answer), asked_for


def half_and_a_quarter(request):
    """Every answer's first id gets 1/2, its others 1/4."""
    logprobs = tuple(tuple(math.log(0.25 if i else 0.5) for i in range(len(o))) for o in request.options)
    return Chosen(request.id, logprobs, Version(2, 7))


def test_a_question_is_one_request_for_the_log_probs_of_its_answers(directory, tokenizer):
    questions = asked()
    encoder = QuestionEncoder(tokenizer, questions.labels, "m")
    both = questions.both_orders(match("one", "two"))
    replies, [requests] = replied(asking(directory, questions).put(both), half_and_a_quarter)
    assert [r.id for r in requests] == ["me-0", "me-1"]
    assert [r.prompt_ids for r in requests] == [encoder.encode(q) for q in both]
    assert all(r.options == encoder.verdict_ids for r in requests)
    expected = tuple(0.5 + 0.25 * (len(ids) - 1) for ids in encoder.verdict_ids)
    assert [r.probabilities for r in replies] == [pytest.approx(expected)] * 2
    assert {r.weights for r in replies} == {"2.7"}


def test_what_does_not_fit_the_engine_is_unanswered_alone_and_costs_no_request(directory):
    questions = asked()
    long = questions.both_orders(match("word " * 3000, "two"))[0]
    short = questions.both_orders(match("one", "two"))[0]
    replies, [requests] = replied(asking(directory, questions).put([long, short, long]), half_and_a_quarter)
    assert [type(r) for r in replies] == [Unanswered, Answered, Unanswered]
    assert "the.knob is 4096" in replies[0].error
    assert len(requests) == 1
    assert replied(asking(directory, questions).put([long])) == ([replies[0]], [])


def test_a_rationale_is_sampled_first_and_stands_before_the_verdict(directory, tokenizer, tmp_path):
    file = tmp_path / "why.yaml"
    file.write_text("user: '{{ conversation }}{{ first }}{{ second }}'\nrationale: {max_tokens: 9, ends_with: 'So:'}")
    questions = asked(template=str(file))

    def reason(request):
        return Sampled(
            request.id, (5,), (0.0,), " Because <|im_end|>. ", FinishReason.STOP, Version(2, 6), Version(2, 7)
        )

    both = questions.both_orders(match("one", "two"))
    replies, (reasons, choices) = replied(asking(directory, questions).put(both), reason, half_and_a_quarter)
    assert [(r.max_tokens, r.temperature, r.stop) for r in reasons] == [(9, 0.0, "So:")] * 2
    for before, after in zip(reasons, choices, strict=True):
        assert after.prompt_ids[: len(before.prompt_ids)] == before.prompt_ids
        said = after.prompt_ids[len(before.prompt_ids) :]
        assert tokenizer.decode(said) == "Because <|im_end|>.\nSo:"
        assert not set(said) & {0, 1, 2}
    assert [r.rationale for r in replies] == ["Because <|im_end|>."] * 2
