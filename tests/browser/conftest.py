"""A real server on a real store, and a real Chromium that people's hands are played in."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from pipelines.annotate.items import AnnotationItem, Shown, Task
from pipelines.annotate.people import new_code
from pipelines.annotate.server import application
from pipelines.annotate.serving import ServerProcess, address, link, listen
from pipelines.annotate.store import Store, sqlite_url
from pipelines.annotate.tables import labels
from preference.types import Message

# Debian's browser. Without its own sandbox it also runs as root and in containers; it only loads the test's server.
CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WAIT_MS = 30_000  # for a state of the page; reached in milliseconds unless the machine is busy
expect.set_options(timeout=WAIT_MS)
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
DESK = {"viewport": {"width": 1280, "height": 860}}


def pair(number: int, left: str | None = None, right: str | None = None, *messages: Message) -> AnnotationItem:
    turns = messages or (Message("user", f"Question {number}?"),)
    texts = left or f"The first answer to {number}.", right or f"The second answer to {number}."
    return AnnotationItem(turns, tuple(Shown(f"r{number}/{i}", text) for i, text in enumerate(texts)))


def single(number: int, text: str | None = None) -> AnnotationItem:
    shown = Shown(f"r{number}", text or f"The only answer to {number}.")
    return AnnotationItem((Message("user", f"Question {number}?"),), (shown,))


@pytest.fixture(scope="module")  # the driver keeps an event loop running in this thread, which other files' tests need
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.fail("these tests need Chromium: run scripts/browser.sh (make test does)")
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False, args=list(FLAGS))
        yield running
        running.close()


class ServerThread:
    """The server in this process: starts at once, and its clock can be moved."""

    def __init__(self, store: Store, bound: socket.socket) -> None:
        self.ahead = 0.0  # seconds
        app = application(store, clock=lambda: time.time() + self.ahead)
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, args=([bound],))
        self._thread.start()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()


@dataclass
class Annotation:
    """A store, its server, and what is known of both."""

    store: Store
    server: ServerThread | ServerProcess
    base: str

    def link(self, name: str = "ada") -> str:
        return link(self.base, self.store.write(lambda db: new_code(db, name, time.time())))

    def labels(self) -> list[tuple[str, str, str, str]]:
        """(item, choice, rationale, written) of the labels that stand, in the order they were given."""
        query = labels.select().where(labels.c.undone.is_(None)).order_by(labels.c.id)
        rows = self.store.read(lambda db: db.execute(query).all())
        return [(r.item, r.choice, r.rationale, r.written) for r in rows]

    def undone(self) -> int:
        return len(self.store.read(lambda db: db.execute(labels.select().where(labels.c.undone.is_not(None))).all()))


def kill(server: ServerProcess) -> None:
    """kill -9; the address stays, and requests wait there for the next server."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)


Serve = Callable[..., Annotation]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts a server on a new store with the given items; further arguments are the task's."""
    running: list[Annotation] = []

    def start(
        items: Sequence[AnnotationItem],
        people: Sequence[str] = ("ada",),
        reviewers: Sequence[str] = (),
        expecting: bool = False,
        own_process: bool = False,
        **task: object,
    ) -> Annotation:
        store = Store(sqlite_url(tmp_path / f"store{len(running)}.db"))
        mode = items[0].mode if items else "pairs"
        rules = {"mode": mode, "guidelines": "# Guidelines\n\nBe **fair**.", "gold_share": 0.0, **task}
        store.configure(Task(**rules), "tests", expecting)  # type: ignore[arg-type]
        store.add_people(people, "annotator")
        store.add_people(reviewers, "reviewer")
        store.add(items)
        bound = listen("127.0.0.1", 0)
        server: ServerThread | ServerProcess
        if own_process:
            server = ServerProcess(store.url, bound, tmp_path / "server.log")
            server.keep_running()
        else:
            server = ServerThread(store, bound)
        running.append(Annotation(store, server, address(bound)))
        return running[-1]

    yield start
    for annotation in running:
        annotation.server.close()
        annotation.store.close()


@dataclass
class Complaints:
    """What the browser says against the page: errors, blocked content, and requests that left for elsewhere."""

    base: str = ""
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: (self.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.foreign.append(request.url))

    def _said(self, message: ConsoleMessage) -> None:
        # A refused request is the server's word and shown on the page; whatever else is said is a fault.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.errors.append(message.text)

    def none(self, base: str) -> None:
        assert self.errors == []
        assert [url for url in self.foreign if not url.startswith(base)] == []


@dataclass
class Desk:
    """One person at one browser."""

    context: BrowserContext
    page: Page
    complaints: Complaints

    def open(self, url: str) -> Page:
        self.page.goto(url)
        return self.page


@pytest.fixture
def desk(browser: Browser) -> Iterator[Callable[..., Desk]]:
    """Makes a browser profile of its own; further arguments are the context's (viewport, colours ...)."""
    made: list[Desk] = []

    def make(**options: object) -> Desk:
        context = browser.new_context(**{**DESK, **options})  # type: ignore[arg-type]
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        made.append(Desk(context, page, Complaints()))
        made[-1].complaints.watch(page)
        return made[-1]

    yield make
    for one in made:
        one.context.close()
