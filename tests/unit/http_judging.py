"""What the tests of the HTTP judge share: a judge without Ray between it and a scripted endpoint."""

import asyncio

from actors.judges.endpoint import Endpoint
from actors.judges.prompted import PromptedPool
from actors.judges.questions import Piece, Question, Questionnaire, Turn
from actors.judges.replies import Answered
from configs.judges import HttpJudge
from preference.types import (
    JudgeInfo,
    Match,
    Message,
    Prompt,
    Written,
)
from tests.endpoint import Answer, completion, endpoint

KEY = "sk-very-secret-1234567890"
LIKES_A = completion("A", {"A": 0.6, " B": 0.2, "C": 0.1, "The": 0.1})
GARBAGE = (
    Answer(body=b"<html>busy</html>"),
    Answer(body=b""),
    Answer(body=b'{"choices": []}'),
    Answer(body=b'{"choices": [{"message": "A"}]}'),
    Answer(body=b"\xff\xfe"),
    Answer(body=b"[" * 10_000),
    Answer(body=b'{"error": {"message": "overloaded"}}'),
)


def section(url="http://127.0.0.1:9/v1", **fields) -> HttpJudge:
    return HttpJudge(kind="http", url=url, model="m", **fields)


def question(name="q") -> Question:
    return Question((Turn("user", (Piece(f"Which is better? {name}", False),)),))


class Naps:
    """Instead of sleeping: remembers for how long."""

    def __init__(self):
        self.seconds = []

    async def __call__(self, seconds):
        self.seconds.append(seconds)
        await asyncio.sleep(0)


def made(url, key=KEY, spent=0.0, **fields):
    judge = section(url, **fields)
    naps = Naps()
    return Endpoint(judge, Questionnaire(judge), key, spent, sleep=naps), naps


def ask(asked: Endpoint, *questions: Question):
    async def all_at_once():
        return await asyncio.gather(*(asked.ask(q) for q in questions or (question(),)))

    return asyncio.run(all_at_once())


class Direct(PromptedPool):
    """The pool without Ray between it and the endpoint."""

    def __init__(self, judge, asked):
        super().__init__(judge, "direct")
        self._endpoint = asked

    async def _ask(self, questions):
        return list(await asyncio.gather(*(self._endpoint.ask(q) for q in questions)))

    def _info(self, replies):
        certain = any(isinstance(r, Answered) and r.certain for r in replies)
        return JudgeInfo("direct (text)" if certain else "direct", "hash")


PROMPT = Prompt("p", (Message("user", "Which city?"),), ())
FIRST, SECOND = Written("1", "p", (), "Paris"), Written("2", "p", (), "Lyon")
MATCH = Match(PROMPT, FIRST, SECOND)


def compared(script, **fields):
    with endpoint(script) as server:
        judge = section(server.url, **fields)
        pool = Direct(judge, Endpoint(judge, Questionnaire(judge), KEY, sleep=Naps()))
        return asyncio.run(pool.compare([MATCH]))[0], server


def paris_first(request) -> bool:
    return request.text.index("Paris") < request.text.index("Lyon")
