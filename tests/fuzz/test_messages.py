"""What others send: an endpoint's answers to a judge, and requests to the annotation page."""

from __future__ import annotations

import asyncio
import json
import string
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import strategies as st

from actors.judges.endpoint import Endpoint
from actors.judges.questions import Piece, Question, Questionnaire, Turn
from actors.judges.replies import Answered, Unanswered
from configs.judges import HttpJudge
from tests.endpoint import completion, refusal
from tests.fuzz.hostile import VALUES, garbled, mutants
from tests.fuzz.trial import fuzzed, no_hang, rows, tried
from tests.unit.annotating import Site, store

ANSWERS = [
    completion("A", {"A": 0.6, " B": 0.2, "C": 0.1}).body,
    completion("B").body,
    completion("Because it is.\nVerdict: A").body,
    {"error": {"message": "logprobs are not supported", "type": "invalid_request_error", "code": None}},
    refusal(429, "slow down").body,
]
BODIES = st.one_of(
    mutants(ANSWERS).map(lambda v: json.dumps(v).encode()), garbled([json.dumps(a).encode() for a in ANSWERS])
)
STATUS = st.sampled_from([200, 200, 200, 200, 201, 204, 301, 400, 401, 404, 408, 413, 422, 429, 500, 503, 599])
HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "content-type", "x-request-id"]),
    st.sampled_from(["0", "1", "-5", "9" * 40, "Wed, 21 Oct 2015 07:28:00 GMT", "soon", "", "text/html"]),
)  # fmt: skip
JUDGES = [
    HttpJudge(kind="http", url="http://judge/v1", model="m", retries=1, mode=mode) for mode in ("pairwise", "pointwise")
]
QUESTION = Question((Turn("user", (Piece("Which is better?", False), Piece("<|im_end|>", True))),))


async def _nap(_: float) -> None:
    await asyncio.sleep(0)


def _ask(judge: HttpJudge, status: int, headers: dict[str, str], body: bytes) -> Any:
    async def ask() -> Any:
        asked = Endpoint(judge, Questionnaire(judge), "sk-secret", sleep=_nap)
        transport = httpx2.MockTransport(lambda _: httpx2.Response(status, headers=headers, content=body))
        http = httpx2.AsyncClient(transport=transport)  # the client is real, the wire is not
        asked._client = openai.AsyncOpenAI(base_url=judge.url, api_key="sk-secret", max_retries=0, http_client=http)
        try:
            return await asked.ask(QUESTION)
        finally:
            await asked._client.close()

    return asyncio.run(ask())


@fuzzed(0.08, st.sampled_from(JUDGES), STATUS, HEADERS, BODIES)
def test_answers_of_an_endpoint(judge, status, headers, body):
    reply = tried("endpoint's answer", lambda: _ask(judge, status, headers, body), "judge.")
    if reply is None:
        return
    assert isinstance(reply, Answered | Unanswered)
    if isinstance(reply, Answered):
        assert all(p >= 0 for p in reply.probabilities)  # what is no distribution fails later, as no verdict
    else:
        assert reply.error
        assert "sk-secret" not in reply.error


PATHS = [
    *(f"/api/{name}" for name in ("session", "session/close", "task", "next", "label", "skip", "undo", "report")),
    *("/api/conflicts", "/api/resolve", "/api/agreement", "/healthz", "/", "/main.js", "/../server.py"),
]
REQUESTS = [
    {"item": "ITEM", "verdict": "left", "strength": 2, "rationale": "r", "written": "w", "seconds": 2.5},
    {"item": "ITEM", "verdict": "tie"},
    {"item": "ITEM", "reason": "spam"},
    {"item": "ITEM"},
    {"code": "0123456789abcdef.secret"},
    {},
]
TOKENS = st.sampled_from(["right", "right", "right", "wrong", "", "\xff" * 70])
COOKIES = st.sampled_from(["right", "right", "right", "", "wrong.secret", "." * 200])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(store(tmp_path_factory.mktemp("site"), items=40))
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def visitor(site):
    return site.visitor("ada", "reviewer")


async def _request(app: Any, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
    """One request through ASGI, as a server would pass it on."""
    sent: list[Any] = []
    asked = [{"type": "http.request", "body": body, "more_body": False}]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode("latin-1", "replace"), "query_string": b"", "root_path": "",
        "headers": [(k.encode(), v.encode("latin-1", "replace")) for k, v in headers.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip

    async def receive() -> Any:
        return asked.pop() if asked else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:])


@fuzzed(
    0.1,
    st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "DELETE", "TRACE"]),
    st.sampled_from(PATHS) | st.text(string.printable, max_size=12).map(lambda t: "/" + t),
    TOKENS,
    COOKIES,
    st.one_of(mutants(REQUESTS).map(json.dumps), VALUES.map(json.dumps), st.text(max_size=10)),
    st.none() | garbled([json.dumps(r).encode() for r in REQUESTS]),
)
def test_requests_to_the_annotation_page(site, visitor, method, path, token, cookie, text, raw):
    site.clock.now += 3600  # nobody is throttled, and every lease has run out
    code = site.code("ada", "reviewer") if cookie == "right" else ""
    item = site.store.read(lambda db: db.exec_driver_sql("SELECT id FROM items ORDER BY random() LIMIT 1").scalar())
    body = raw if raw is not None else text.encode("utf-8", "replace")
    if code:  # sessions end after hours, too
        visitor.csrf = visitor.post("session", code=code)["csrf"]
    name, value = next(iter(visitor.client.cookies.items()))
    headers = {"cookie": f"{name}={value if cookie == 'right' else cookie}", "content-type": "application/json",
               "x-csrf-token": visitor.csrf if token == "right" else token}  # fmt: skip
    before = rows(site.store)
    with no_hang():
        status, answer = asyncio.run(
            _request(site.app, method, path, headers, body.replace(b"ITEM", str(item).encode()))
        )

    def judged() -> bool:
        assert status < 500, (status, answer)
        if status >= 400 and path.startswith("/api/") and method == "POST":
            assert json.loads(answer)["error"]
            assert rows(site.store) == before
        return True

    tried("annotator's request", judged)
