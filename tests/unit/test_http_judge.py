"""The HTTP judge against a scripted endpoint: what it says becomes verdicts and grades, never anything else."""

import asyncio

import pytest

from actors.judges.endpoint import Endpoint
from actors.judges.questions import Questionnaire
from preference.types import CandidateGroup, JudgeFailure, Outcome, Rating, Verdict
from tests.endpoint import completion, endpoint, refusal
from tests.unit.http_judging import (
    FIRST,
    KEY,
    LIKES_A,
    PROMPT,
    SECOND,
    Direct,
    Naps,
    compared,
    paris_first,
    section,
)


def test_both_orders_become_one_verdict():
    def script(request):
        return completion("A", {"A": 0.6, "B": 0.2} if paris_first(request) else {"A": 0.3, "B": 0.5}, (1000, 2))

    verdict, server = compared(script, price_in=2.0, price_out=10.0)
    assert isinstance(verdict, Verdict)
    # (0.6 / 0.8 + 0.5 / 0.8) / 2
    assert verdict.probability == pytest.approx(0.6875)
    assert (verdict.outcome, verdict.order_flipped) == (Outcome.FIRST, False)
    assert verdict.cost == pytest.approx(2 * (1000 * 2 + 2 * 10) / 1e6)
    assert verdict.judge.name == "direct"
    assert len(server.requests) == 2
    sent = server.requests[0]
    assert (sent.body["model"], sent.body["temperature"], sent.body["logprobs"]) == ("m", 0.0, True)
    assert sent.body["top_logprobs"] == 20
    assert sent.headers["authorization"] == f"Bearer {KEY}"


def test_a_judge_that_answers_a_position_says_tie():
    verdict, _ = compared(lambda r: LIKES_A)
    assert (verdict.outcome, verdict.probability, verdict.order_flipped) == (Outcome.TIE, 0.5, True)


def test_text_answers_are_verdicts_marked_as_such():
    verdict, _ = compared(lambda r: completion("A." if paris_first(r) else " **B**"))
    assert (verdict.outcome, verdict.probability) == (Outcome.FIRST, 1.0)
    assert verdict.judge.name == "direct (text)"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (completion("Both are fine"), "not one of A, B, C"),
        (completion("AB"), "'AB', not one of"),
        (completion(""), "not one of"),
        (completion("The", {"The": 0.95, "A": 0.05}), "min_mass = 0.1"),
        (completion("The", {"The": 1.0}), "min_mass = 0.1"),
    ],
)
def test_no_answer_is_no_verdict(answer, words):
    failure, server = compared(lambda r: answer, price_in=1.0)
    assert isinstance(failure, JudgeFailure)
    assert (failure.outcome, failure.candidate_ids) == (Outcome.FAILED, ("1", "2"))
    assert words in failure.error
    assert failure.cost == pytest.approx(2 * 100 / 1e6)  # it was paid for all the same
    assert len(server.requests) == 2  # asking again would bring the same


def test_one_failing_order_is_no_verdict():
    failure, _ = compared(lambda r: LIKES_A if paris_first(r) else refusal(500), retries=1)
    assert isinstance(failure, JudgeFailure)
    assert "answered 500: no (2 attempts)" in failure.error


def test_grades():
    with endpoint(lambda r: completion("4", {"4": 0.4, "5": 0.4, "1": 0.1, "Good": 0.1})) as server:
        judge = section(server.url, mode="pointwise")
        pool = Direct(judge, Endpoint(judge, Questionnaire(judge), KEY, sleep=Naps()))
        ratings = asyncio.run(pool.rate([CandidateGroup(PROMPT, (FIRST, SECOND))]))
    assert [r.candidate_id for r in ratings] == ["1", "2"]
    assert all(isinstance(r, Rating) for r in ratings)
    assert ratings[0].value == pytest.approx((4 * 0.4 + 5 * 0.4 + 0.1) / 0.9)
