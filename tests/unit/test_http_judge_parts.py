"""Parts of the HTTP judge alone: budget, pace, keys, what is sent and how an answer is read."""

import asyncio
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.judges.completions import Completion, chat_messages, read_answer
from actors.judges.errors import BudgetExhausted, JudgeError
from actors.judges.keys import read_key
from actors.judges.metering import Budget, Pace
from actors.judges.questions import Piece, Question, Turn
from actors.judges.replies import Unanswered
from actors.judges.template import Rationale
from configs.judges import HttpJudge

KEY = "sk-very-secret-1234567890"


def section(**fields) -> HttpJudge:
    return HttpJudge(kind="http", url="http://127.0.0.1:9/v1", model="m", **fields)


@settings(deadline=None)
@given(
    limit=st.floats(1, 100),
    bills=st.lists(st.tuples(st.floats(0.1, 10), st.floats(0, 1)), min_size=1, max_size=40),
)
def test_reservations_keep_any_order_of_bills_within_the_limit(limit, bills):
    async def spend(budget, most, share):
        await budget.reserve(most)
        await asyncio.sleep(0)
        await budget.settle(most, most * share)
        assert budget.spent <= limit * (1 + 1e-9)

    async def all_of_them():
        budget = Budget(limit)
        done = await asyncio.gather(*(spend(budget, m, s) for m, s in bills), return_exceptions=True)
        stopped = [d for d in done if d is not None]
        assert all(isinstance(d, BudgetExhausted) for d in stopped)
        if sum(m for m, _ in bills) <= limit:
            assert not stopped

    asyncio.run(all_of_them())


def test_pace_spaces_requests_evenly():
    now = 100.0
    went = []

    async def sleep(seconds):
        nonlocal now
        now += seconds

    async def go():
        pace = Pace(30, sleep, lambda: now)
        for i in range(4):
            if i == 3:
                pace.hold(60)
            await pace.wait()
            went.append(now)

    asyncio.run(go())
    assert went == [100, 102, 104, 164]


def test_no_rate_limit_no_waiting():
    naps = []

    async def sleep(seconds):
        naps.append(seconds)

    async def go():
        pace = Pace(None, sleep)
        for _ in range(5):
            await pace.wait()

    asyncio.run(go())
    assert naps == []


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o610])
def test_a_key_file_for_all_to_read_is_refused(tmp_path, mode):
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(mode)
    with pytest.raises(JudgeError) as refused:
        read_key(section(api_key_file=str(file)))
    assert f"mode {mode:04o}" in str(refused.value)
    assert f"chmod 600 {file}" in str(refused.value)
    assert KEY not in str(refused.value)


def test_key_from_a_file_of_the_owners(tmp_path):
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    file.chmod(0o600)
    assert read_key(section(api_key_file=str(file))) == KEY
    for content in (b"", b"two\nlines", b"\xff"):
        file.write_bytes(content)
        with pytest.raises(JudgeError, match=r"judge\.api_key_file"):
            read_key(section(api_key_file=str(file)))
    with pytest.raises(JudgeError, match="No such file"):
        read_key(section(api_key_file=str(tmp_path / "none")))


def test_key_from_the_environment(monkeypatch):
    assert read_key(section()) == ""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    assert read_key(section(api_key_env="JUDGE_KEY")) == KEY
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(JudgeError, match=r"judge\.api_key_env = JUDGE_KEY"):
        read_key(section(api_key_env="JUDGE_KEY"))
    assert "JUDGE_KEY" not in os.environ


@pytest.mark.parametrize(
    "text",
    ["<|im_end|>", "<|im_start|>system", "</s>", "<s>", "[INST] x [/INST]", "<<SYS>>", "<start_of_turn>", "<｜User｜>"],
)
def test_control_tokens_in_what_is_quoted_are_broken(text):
    quoted = Question((Turn("user", (Piece(f"say {text}", False), Piece(f"a {text} b", True))),))
    [message] = chat_messages(quoted)
    assert message["content"].count(text) == 1
    assert message["content"].replace("\u200b", "") == f"say {text}a {text} b"


@pytest.mark.parametrize("text", ["a < b | c", "if x<|y", "[1] <b>bold</b> <table>", "list[INSTANCE]"])
def test_ordinary_text_is_left_alone(text):
    [message] = chat_messages(Question((Turn("user", (Piece(text, True),)),)))
    assert message["content"].replace("\u200b", "") == text
    if "<|" not in text:
        assert message["content"] == text


def tokens(*pairs):
    content = [
        {"token": t, "logprob": -0.5, "top_logprobs": [{"token": k, "logprob": -1.0} for k in top]} for t, top in pairs
    ]
    text = "".join(t for t, _ in pairs)
    return Completion.model_validate({"choices": [{"message": {"content": text}, "logprobs": {"content": content}}]})


def test_a_rationale_is_read_before_the_verdict():
    rationale = Rationale(max_tokens=20, ends_with="Verdict:")
    said = tokens(("A is ", ()), ("wrong.\n", ()), ("Verdict", ()), (":", ()), (" ", ()), ("B", ("B", " B", "A")))
    reply = read_answer(said, ("A", "B"), rationale)
    assert reply.rationale == "A is wrong."
    assert reply.probabilities == pytest.approx((0.36788, 2 * 0.36788), abs=1e-4)
    assert isinstance(read_answer(tokens(("B", ("B",))), ("A", "B"), rationale), Unanswered)
