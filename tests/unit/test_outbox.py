"""Deliveries to a service that fails: what waits, what is given up, what is said, and what a restart remembers."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.tracking.events import EVENTS, EventLog, Stepped, Table
from pipelines.tracking.outbox import Outbox, Service

PATIENCE = 30.0  # seconds that nothing here takes, unless it is broken


class Store:
    """A service with two parts; sending the same thing twice is seen."""

    def __init__(self) -> None:
        self.error: dict[str, Exception] = {}
        self.received: list[str] = []
        self.asked: list[str] = []
        self.arrived = threading.Condition()

    def send(self, part: str) -> Callable[[Stepped | Table], None]:
        def deliver(event: Stepped | Table) -> None:
            with self.arrived:
                self.asked.append(event.key)
                if part in self.error:
                    raise self.error[part]
                self.received.append(event.key)
                self.arrived.notify_all()

        return deliver

    def service(self) -> Service:
        lanes = {"metrics": {Stepped: self.send("metrics")}, "artifacts": {Table: self.send("artifacts")}}
        return Service("store", lanes, lambda error: isinstance(error, OSError), str)

    def wait_for(self, count: int) -> bool:
        with self.arrived:
            return self.arrived.wait_for(lambda: len(self.received) >= count, PATIENCE)


def stepped(step: int) -> Stepped:
    return Stepped(step, 0, "0.1", {"loss": 1.0}, (), {}, {})


class Run:
    """A run directory with its log, and an outbox that starts anew as often as the process does."""

    def __init__(self, directory: Path, store: Store, run: str = "run", **options: float) -> None:
        self.directory, self.store, self.warnings = directory, store, list[str]()
        self.log = EventLog(directory)
        cursor = directory / "tracking" / "delivered.json"
        self.outbox = Outbox(store.service(), self.log.path, cursor, run, self.warnings.append, **options)

    def put(self, *events: Stepped | Table) -> None:
        for event in events:
            if self.log.append(event):
                self.outbox.wake()

    def close(self) -> None:
        self.outbox.close()
        self.log.close()


def test_what_failed_arrives_later_in_order_and_is_said_once(tmp_path: Path) -> None:
    store = Store()
    store.error["metrics"] = OSError("down")
    run = Run(tmp_path, store)
    run.put(stepped(1), stepped(2))
    assert not run.outbox.drain(PATIENCE)
    assert not run.outbox.drain(PATIENCE)
    assert run.outbox.missing() == ["step 1", "step 2"]
    assert set(store.asked) == {"step 1"}  # what comes after it waits
    assert run.warnings == ["store failed (down); the run goes on and what is unsent is tried again"]
    store.error.clear()
    assert run.outbox.drain(PATIENCE)
    assert store.received == ["step 1", "step 2"]
    assert run.warnings[1:] == ["store is back: what waited is being delivered"]
    run.close()


def test_it_is_tried_again_without_being_asked_to(tmp_path: Path) -> None:
    store = Store()
    store.error["metrics"] = OSError("down")
    run = Run(tmp_path, store, first_pause_s=0.001)
    run.put(stepped(1))
    assert not run.outbox.drain(PATIENCE)
    store.error.clear()
    assert store.wait_for(1)
    run.close()


def test_a_part_that_is_down_holds_up_no_other(tmp_path: Path) -> None:
    store = Store()
    store.error["artifacts"] = OSError("disk full")
    run = Run(tmp_path, store)
    run.put(Table("a.json", "{}"), stepped(1), Table("b.json", "{}"), stepped(2))
    run.outbox.drain(PATIENCE)
    assert store.received == ["step 1", "step 2"]
    assert run.outbox.missing() == ["a.json", "b.json"]
    run.close()


def test_what_is_refused_for_good_is_given_up_and_remembered(tmp_path: Path) -> None:
    store = Store()
    store.error["artifacts"] = ValueError("bad")
    run = Run(tmp_path, store)
    run.put(Table("a.json", "{}"))
    run.outbox.drain(PATIENCE)
    assert run.warnings == ["store refused a.json: bad"]
    store.error.clear()
    run.put(Table("b.json", "{}"))
    run.outbox.drain(PATIENCE)
    assert run.outbox.missing() == ["a.json"]
    run.close()
    again = Run(tmp_path, store)
    again.outbox.drain(PATIENCE)
    assert again.outbox.missing() == ["a.json"]
    assert store.received == ["b.json"]
    again.close()


def test_an_event_is_written_once_whoever_tells_it_again(tmp_path: Path) -> None:
    store = Store()
    run = Run(tmp_path, store)
    run.put(stepped(1), stepped(1))
    run.outbox.drain(PATIENCE)
    run.close()
    again = Run(tmp_path, store)
    again.put(stepped(1), stepped(2))
    again.outbox.drain(PATIENCE)
    assert store.received == ["step 1", "step 2"]
    again.close()


def test_another_run_in_the_service_is_sent_everything(tmp_path: Path) -> None:
    store = Store()
    run = Run(tmp_path, store)
    run.put(stepped(1), stepped(2))
    run.outbox.drain(PATIENCE)
    run.close()
    other = Run(tmp_path, store, run="made anew")
    assert other.outbox.drain(PATIENCE)
    assert store.received == ["step 1", "step 2"] * 2
    other.close()


@pytest.mark.parametrize("damage", ["", "{", '{"run": "run", "offsets": 3, "refused": []}', "[]"])
def test_a_damaged_cursor_sends_again_rather_than_never(tmp_path: Path, damage: str) -> None:
    store = Store()
    run = Run(tmp_path, store)
    run.put(stepped(1))
    run.outbox.drain(PATIENCE)
    run.close()
    (tmp_path / "tracking" / "delivered.json").write_text(damage)
    again = Run(tmp_path, store)
    assert again.outbox.drain(PATIENCE)
    assert store.received == ["step 1"] * 2
    again.close()


def test_a_damaged_or_foreign_event_is_passed_over(tmp_path: Path) -> None:
    store = Store()
    run = Run(tmp_path, store)
    run.put(stepped(1))
    with (tmp_path / EVENTS).open("ab") as lines:
        lines.write(b'00000000 {"event":"stepped"}\n')
    run.put(stepped(2))
    assert run.outbox.drain(PATIENCE)
    assert store.received == ["step 1", "step 2"]
    run.close()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["put", "table", "down", "up", "restart", "drain"]), max_size=25))
def test_whatever_happens_everything_arrives_once_and_in_order(tmp_path_factory: pytest.TempPathFactory, acts) -> None:
    """Outages and restarts in any order; a restart loses nothing that was put."""
    directory, store = tmp_path_factory.mktemp("run"), Store()
    run, steps, tables = Run(directory, store), 0, 0
    for act in [*acts, "up"]:
        match act:
            case "put":
                steps += 1
                run.put(stepped(steps))
            case "table":
                tables += 1
                run.put(Table(f"{tables}.json", "{}"))
            case "down":
                store.error = {"metrics": OSError("down"), "artifacts": OSError("down")}
            case "up":
                store.error = {}
            case "restart":
                run.close()
                run = Run(directory, store)
            case "drain":
                run.outbox.drain(PATIENCE)
    assert run.outbox.drain(PATIENCE)
    assert [k for k in store.received if k.startswith("step")] == [f"step {n}" for n in range(1, steps + 1)]
    assert [k for k in store.received if not k.startswith("step")] == [f"{n}.json" for n in range(1, tables + 1)]
    run.close()
