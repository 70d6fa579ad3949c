"""The HTTP server of the annotation page: sessions, items, labels, review. What it acknowledges is durable.

Model output is hostile and so may be a link's holder: everything is JSON, the page runs under a strict content security
policy, every request that changes something carries a CSRF token, and sizes and rates are bounded.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.annotate import endpoints, people
from pipelines.annotate.assignment import recognise
from pipelines.annotate.commit import GroupCommit
from pipelines.annotate.endpoints import (
    Body,
    Call,
    CodeBody,
    EmptyBody,
    ItemBody,
    LabelBody,
    ReportBody,
    about,
    refused,
)
from pipelines.annotate.labelling import Refused
from pipelines.annotate.limits import RateLimit
from pipelines.annotate.people import Person, Secret
from pipelines.annotate.store import Store

log = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "page"
MOST_BYTES = 256 * 1024  # of a request's body
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Annotation:
    """The endpoints of one store, with the guards in front of them."""

    def __init__(self, store: Store, secure: bool, clock: Callable[[], float] = time.time) -> None:
        self._store, self._clock, self._secure = store, clock, secure
        self._commit = GroupCommit(store)
        # Browsers send a host's cookies to all of its ports: two stores on one machine must not share a name.
        self._cookie = f"rondo-{store.state().secret[:8]}"
        self._failures = RateLimit(per_second=1 / 6, burst=10, clock=clock)  # of codes, by address
        self._requests = RateLimit(per_second=100, burst=400, clock=clock)  # by session
        self._strangers = RateLimit(per_second=10, burst=100, clock=clock)  # by address: requests without a session

    def routes(self) -> list[Route | Mount]:
        def post(path: str, body: type[Body], act: Callable[[Call, Any], Any], reviewer: bool = False) -> Route:
            return Route(path, self._acting(body, act, reviewer), methods=["POST"])

        return [
            Route("/healthz", self.healthz),
            Route("/api/session", self.open_session, methods=["POST"]),
            Route("/api/session", self._acting(None, endpoints.show_session)),
            post("/api/session/close", EmptyBody, endpoints.close),
            Route("/api/task", self._acting(None, endpoints.task)),
            post("/api/next", EmptyBody, endpoints.offer_next),
            post("/api/label", LabelBody, endpoints.label),
            post("/api/skip", ItemBody, endpoints.skip),
            post("/api/undo", EmptyBody, endpoints.undo),
            post("/api/report", ReportBody, endpoints.report),
            Route("/api/conflicts", self._acting(None, endpoints.conflicts, reviewer=True)),
            post("/api/resolve", LabelBody, endpoints.resolve, reviewer=True),
            Route("/api/agreement", self._acting(None, endpoints.agreement, reviewer=True)),
            Mount("/", StaticFiles(directory=PAGE, html=True, check_dir=False)),
        ]

    async def healthz(self, _: Request) -> Response:
        await run_in_threadpool(self._store.read, lambda db: db.execute(text("SELECT 1")).scalar())
        return JSONResponse({"status": "ok"})

    async def open_session(self, request: Request) -> Response:
        address = _address(request)
        if not self._failures.allows(address, cost=0):
            return _too_many(self._failures)
        body = await _read(request, CodeBody)
        if isinstance(body, Response):
            return body
        now = self._clock()

        def work(db: Connection) -> tuple[Secret, Person] | None:
            session = people.open_session(db, body.code, now)
            person = people.who(db, session, now) if session else None
            return (session, person) if session and person else None

        opened = await self._commit.submit(work)
        if opened is None:
            self._failures.allows(address)
            return refused(401, "code is unknown, used or expired; ask for a new link")
        session, person = opened
        response = JSONResponse(about(person, session))
        secure = self._secure or request.url.scheme == "https"
        response.set_cookie(
            self._cookie, str(session), max_age=int(people.SESSION_S), path="/", secure=secure, httponly=True,
            samesite="strict",
        )  # fmt: skip
        return response

    def _acting(
        self, body_type: type[Body] | None, act: Callable[[Call, Any], Any], reviewer: bool = False
    ) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint: who asks, may they, what do they ask; then ``act`` in one transaction with all of that.

        With a body it changes something: it needs the CSRF token, and is answered after the commit.
        """

        async def endpoint(request: Request) -> Response:
            session = Secret.parse(request.cookies.get(self._cookie, ""))
            if not self._strangers.allows(_address(request), cost=0):
                return _too_many(self._strangers)
            if not self._requests.allows(session.id):
                return _too_many(self._requests)
            body = None
            if body_type is not None:
                if not _same(request.headers.get("x-csrf-token", ""), session.csrf):
                    return await self._without_token(request, session)
                body = await _read(request, body_type)
                if isinstance(body, Response):
                    return body
            now = self._clock()

            def work(db: Connection) -> Any:
                known = recognise(db, session, now)
                if known is None:
                    return self._no_session(request)
                person, state = known
                if reviewer and person.role != "reviewer":
                    return refused(403, f"{request.url.path} is for reviewers; you are an annotator")
                return act(Call(db, person, state, now), body if body is not None else session)

            if body_type is not None:
                done = await self._commit.submit(work)
            else:
                done = await run_in_threadpool(self._store.read, work)
            return done if isinstance(done, Response) else JSONResponse(done)

        return endpoint

    async def _without_token(self, request: Request, session: Secret) -> Response:
        if await run_in_threadpool(self._store.read, lambda db: people.who(db, session, self._clock())):
            return refused(403, "header X-CSRF-Token is missing or wrong; load the page again")
        return self._no_session(request)

    def _no_session(self, request: Request) -> Response:
        self._strangers.allows(_address(request))
        return refused(401, "no session, or it has expired; open your link again, or ask for a new one")

    def close(self) -> None:
        self._commit.close()


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


def _too_many(limit: RateLimit) -> JSONResponse:
    response = refused(429, f"too many requests; wait {limit.wait_s} s")
    response.headers["retry-after"] = str(limit.wait_s)
    return response


async def _read(request: Request, kind: type[Body]) -> Any:
    """The body as ``kind``, or the response that says what is wrong with it. Never holds more than ``MOST_BYTES``."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MOST_BYTES:
            return refused(413, f"the body is larger than {MOST_BYTES} bytes; shorten it")
    try:
        return kind.model_validate_json(bytes(data) or b"{}")
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "body"
        return refused(422, f"{field}: {first['msg']}")


async def _on_refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    more = {"kept": False} if error.status == 409 else {}
    return refused(error.status, str(error), **more)


async def _on_http(_: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    return refused(status, str(getattr(error, "detail", "")) or "no such page")


async def _on_database(_: Request, error: Exception) -> Response:
    log.error("the store failed: %s", error)
    return refused(503, "the store cannot be written just now; nothing was recorded, try again")


def application(store: Store, *, secure: bool = False, clock: Callable[[], float] = time.time) -> ASGIApp:
    """The ASGI application. ``secure``: cookies only travel over TLS, which ends at a proxy in front of this server."""
    annotation = Annotation(store, secure, clock)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        annotation.close()

    app = Starlette(
        routes=annotation.routes(),
        lifespan=lifespan,
        exception_handlers={Refused: _on_refused, HTTPException: _on_http, SQLAlchemyError: _on_database},
    )
    return _with_headers(app)


def _with_headers(app: Starlette) -> ASGIApp:
    """Security headers on whatever is answered, errors and files included."""
    extra = [(k.encode(), v.encode()) for k, v in _HEADERS.items()]

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        await app(scope, receive, sending)

    return wrapped
