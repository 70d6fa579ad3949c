"""What goes wrong with an endpoint is survived or named, and never costs more than it may."""

import threading

import pytest

from actors.judges.endpoint import _retry_after
from actors.judges.errors import BudgetExhausted, JudgeError, JudgeUnauthorised
from actors.judges.replies import Answered, Unanswered
from tests.endpoint import DROP, HANG, completion, endpoint, refusal
from tests.unit.http_judging import GARBAGE, KEY, LIKES_A, ask, made, question


@pytest.mark.parametrize(
    "fault", [refusal(408), refusal(409), refusal(429), refusal(500), refusal(503), DROP, *GARBAGE]
)
def test_passing_faults_are_retried_under_one_key(fault):
    with endpoint(lambda r: fault if r.number < 2 else LIKES_A) as server:
        asked, naps = made(server.url)
        [reply] = ask(asked)
    assert isinstance(reply, Answered)
    assert reply.probabilities == pytest.approx((0.6, 0.2, 0.1))
    keys = {r.headers["idempotency-key"] for r in server.requests}
    assert (len(server.requests), len(keys), len(naps.seconds)) == (3, 1, 2)
    assert 0.25 <= naps.seconds[0] <= 0.5
    assert 0.5 <= naps.seconds[1] <= 1.0
    assert (asked.usage.requests, asked.usage.retries) == (3, 2)


@pytest.mark.parametrize("fault", [refusal(500, "on fire"), DROP, *GARBAGE])
def test_lasting_faults_fail_the_question_alone(fault):
    with endpoint(lambda r: fault if "bad" in r.text else LIKES_A) as server:
        asked, _ = made(server.url, retries=2)
        bad, good = ask(asked, question("bad"), question("good"))
    assert isinstance(bad, Unanswered)
    assert "(3 attempts)" in bad.error
    assert isinstance(good, Answered)
    assert len(server.requests) == 4


def test_an_endpoint_that_hangs_is_left():
    with endpoint(lambda r: HANG) as server:
        asked, _ = made(server.url, timeout_s=0.2, retries=1, price_in=1e6, price_out=1e6)
        [reply] = ask(asked)
        assert isinstance(reply, Unanswered)
        assert "no answer within judge.timeout_s = 0.2 s (2 attempts)" in reply.error
        # It may have been billed: bytes of the question and its frame, 4 tokens of answer, twice.
        assert reply.cost == asked.usage.cost == pytest.approx(2 * (len("Which is better? q") + 64 + 4))


def test_nobody_there():
    asked, _ = made("http://127.0.0.1:9/v1", retries=1, price_in=1.0)
    [reply] = ask(asked)
    assert isinstance(reply, Unanswered)
    assert "connection failed" in reply.error
    assert reply.cost == 0


def test_retry_after_is_honoured():
    with endpoint(lambda r: LIKES_A if r.number else refusal(429, Retry_After="7")) as server:
        asked, naps = made(server.url)
        ask(asked)
    assert naps.seconds[0] >= 7.25


def test_too_long_a_pause_is_not_waited_for():
    with endpoint(lambda r: refusal(429, "tomorrow", Retry_After="86400")) as server:
        asked, naps = made(server.url)
        [reply] = ask(asked)
    assert "asks to wait 86400 s: tomorrow" in reply.error
    assert (len(server.requests), naps.seconds) == (1, [])


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("12", 12), ("", 0), ("soon", 0), ("-3", 0), ("nan", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)
def test_retry_after_header(header, seconds):
    assert _retry_after(header) == seconds


def test_retry_after_may_be_a_date():
    assert _retry_after("Fri, 01 Jan 2100 00:00:00 GMT") > 1e9


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_refused_key_stops_everything_and_is_not_shown(status):
    with endpoint(lambda r: refusal(status, f"Incorrect API key provided: {KEY}")) as server:
        asked, _ = made(server.url, api_key_env="JUDGE_KEY", concurrency=1)
        for _ in range(3):
            with pytest.raises(JudgeUnauthorised) as stopped:
                ask(asked)
    assert len(server.requests) == 1
    message = str(stopped.value)
    assert KEY not in message
    assert f"answered {status}: Incorrect API key provided: ***; check the key in JUDGE_KEY" in message
    assert stopped.value.__cause__ is None
    assert stopped.value.__suppress_context__


def test_an_exhausted_account_is_not_retried():
    with endpoint(lambda r: refusal(429, "You exceeded your quota", "insufficient_quota")) as server:
        asked, _ = made(server.url)
        with pytest.raises(JudgeUnauthorised, match="exceeded your quota"):
            ask(asked)
    assert len(server.requests) == 1


def test_an_unknown_model_stops_everything():
    with endpoint(lambda r: refusal(404, "no such model")) as server:
        asked, _ = made(server.url)
        with pytest.raises(JudgeError, match=r"answered 404 for judge\.model m: no such model"):
            ask(asked)


def test_a_question_that_is_refused_fails_alone():
    words = "'max_tokens' or 'max_completion_tokens' is too large: the context is 1024"
    with endpoint(lambda r: refusal(400, words) if "bad" in r.text else LIKES_A) as server:
        asked, _ = made(server.url)
        bad, good = ask(asked, question("bad"), question("good"))
    assert f"answered 400: {words}" in bad.error
    assert isinstance(good, Answered)
    assert len(server.requests) == 2


def test_the_endpoints_dialect_is_learnt_once():
    def script(request):
        if request.body.get("top_logprobs", 0) > 5:
            return refusal(400, "top_logprobs must be at most 5")
        if request.body.get("logprobs"):
            return refusal(422, "logprobs are not supported by this model")
        if "max_tokens" in request.body:
            return refusal(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "temperature" in request.body:
            return refusal(400, "'temperature' does not support 0.0 with this model")
        return completion("C")

    with endpoint(script) as server:
        asked, _ = made(server.url)
        [first] = ask(asked)
        [second] = ask(asked, question("another"))
    assert first.probabilities == second.probabilities == (0.0, 0.0, 1.0)
    assert first.certain
    assert len(server.requests) == 6
    assert set(server.requests[-1].body) == {"model", "messages", "max_completion_tokens"}


def test_never_more_than_concurrency_at_once():
    limit, lock, running, most = 3, threading.Lock(), 0, 0
    together = threading.Barrier(limit)

    def script(request):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(timeout=30)  # breaks unless as many as may are there
        with lock:
            running -= 1
        return LIKES_A

    with endpoint(script) as server:
        asked, _ = made(server.url, concurrency=limit)
        replies = ask(asked, *(question(str(i)) for i in range(4 * limit)))
    assert all(isinstance(r, Answered) for r in replies)
    assert most == limit
    assert len({r.headers["idempotency-key"] for r in server.requests}) == 4 * limit


def test_budget_is_never_exceeded():
    """The endpoint bills what it likes below the worst case; what it has billed never passes the budget."""
    billed = []

    def script(request):
        tokens = (20 + 3 * (request.number % 5), 1)
        billed.append(tokens[0] * 1.0 + tokens[1] * 5.0)
        return completion("A", {"A": 1.0}, tokens)

    with endpoint(script) as server:
        asked, _ = made(server.url, spent=300.0, price_in=1e6, price_out=5e6, budget=1000.0)
        with pytest.raises(BudgetExhausted) as stopped:
            ask(asked, *(question(str(i)) for i in range(100)))
        with pytest.raises(BudgetExhausted):
            ask(asked)
    assert 300 + sum(billed) <= 1000
    # Stopped no earlier than one more might have been too much.
    worst = len("Which is better? 10") + 64 + 4 * 5
    assert 300 + sum(billed) > 1000 - worst
    assert asked.usage.cost == pytest.approx(300 + sum(billed))
    assert "judge.budget = 1000" in str(stopped.value)


def test_verdicts_that_begin_alike_are_refused(tmp_path):
    file = tmp_path / "t.yaml"
    file.write_text("user: '{{ conversation }}{{ first }}{{ second }}'\nverdicts: {first: A, second: AB, tie: ''}")
    with pytest.raises(JudgeError, match="'A' or 'AB'"):
        made("http://127.0.0.1:9/v1", template=str(file))
