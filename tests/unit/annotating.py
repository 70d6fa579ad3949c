"""A store with items in it, its HTTP application, and people who use it, for tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from pipelines.annotate.items import AnnotationItem, Role, Shown, Task
from pipelines.annotate.people import new_code
from pipelines.annotate.server import application
from pipelines.annotate.store import Store, sqlite_url
from preference.types import Message


def item(number: int, mode: str = "pairs") -> AnnotationItem:
    responses = tuple(
        Shown(f"{number}/{side}", f"answer {number}{side}") for side in ("ab" if mode == "pairs" else "a")
    )
    return AnnotationItem((Message("user", f"question {number}"),), responses)


def store(directory: Path, items: int = 3, expecting: bool = False, **rules: Any) -> Store:
    """A store with ``items`` items of step 1."""
    task = Task(**{"mode": "pairs", "guidelines": "Choose.", "gold_share": 0.0, **rules})
    made = Store(sqlite_url(directory / "labels.db"))
    made.configure(task, "test", expecting)
    made.add([item(i, task.mode) for i in range(items)], step=1)
    return made


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Visitor:
    """A person's browser, as far as HTTP goes."""

    client: TestClient
    csrf: str = ""

    def post(self, path: str, expect: int = 200, **body: Any) -> dict[str, Any]:
        answer = self.client.post(f"/api/{path}", json=body, headers={"X-CSRF-Token": self.csrf})
        assert answer.status_code == expect, answer.text
        return answer.json()

    def get(self, path: str, expect: int = 200) -> dict[str, Any]:
        answer = self.client.get(f"/api/{path}")
        assert answer.status_code == expect, answer.text
        return answer.json()

    def next(self) -> str:
        found = self.post("next")["item"]
        assert found is not None
        return found["id"]

    def label(self, verdict: str = "tie", expect: int = 200, **more: Any) -> str:
        """Take the next item and label it."""
        id = self.next()
        self.post("label", expect, item=id, verdict=verdict, **more)
        return id

    def choose(self, winner: str, **more: Any) -> str:
        """Take the next item and choose the response that ends so, on whichever side it stands."""
        shown = self.post("next")["item"]
        verdict = "left" if shown["left"].endswith(winner) else "right"
        self.post("label", item=shown["id"], verdict=verdict, **more)
        return shown["id"]


@dataclass
class Site:
    store: Store
    clock: Clock = field(default_factory=Clock)
    app: Any = None

    def __post_init__(self) -> None:
        self.app = application(self.store, clock=self.clock)

    def code(self, name: str, role: Role = "annotator") -> str:
        self.store.add_people([name], role)
        return self.store.write(lambda db: new_code(db, name, self.clock()))

    def client(self, **options: Any) -> TestClient:
        return TestClient(self.app, **options)

    def visitor(self, name: str, role: Role = "annotator") -> Visitor:
        visitor = Visitor(self.client())
        visitor.csrf = visitor.post("session", code=self.code(name, role))["csrf"]
        return visitor


Make = Callable[..., Site]
