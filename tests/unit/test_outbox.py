"""Deliveries to a service that fails: what waits, what is given up, and what is said about it."""

from collections.abc import Callable

from pipelines.outbox import Outbox


class Service:
    def __init__(self) -> None:
        self.error: dict[str, Exception] = {}
        self.received: list[str] = []
        self.asked = 0

    def send(self, what: str, part: str) -> Callable[[], None]:
        def deliver() -> None:
            self.asked += 1
            if part in self.error:
                raise self.error[part]
            self.received.append(what)

        return deliver


def outbox(warnings: list[str]) -> Outbox:
    return Outbox("store", warnings.append, lambda error: isinstance(error, OSError), str)


def test_what_failed_arrives_later_and_in_order() -> None:
    service, warnings = Service(), list[str]()
    box = outbox(warnings)
    service.error["a"] = OSError("down")
    for what in ("1", "2"):
        box.deliver(what, service.send(what, "a"), "a")
    assert not box.is_empty()
    assert box.missing() == ["1", "2"]
    assert warnings == ["store failed (down); the run goes on and what is unsent is tried again"]
    service.error.clear()
    box.flush()
    assert service.received == ["1", "2"]
    assert box.missing() == []
    assert warnings[1:] == ["store is back: 2 waiting entries delivered"]


def test_a_part_that_is_down_holds_up_no_other_and_is_asked_once() -> None:
    service, warnings = Service(), list[str]()
    box = outbox(warnings)
    service.error["a"] = OSError("down")
    box.deliver("1", service.send("1", "a"), "a")
    box.deliver("2", service.send("2", "a"), "a")
    service.asked = 0
    box.deliver("3", service.send("3", "b"), "b")
    assert service.received == ["3"]
    assert service.asked == 2
    assert box.missing() == ["1", "2"]


def test_what_is_refused_for_good_is_given_up() -> None:
    service, warnings = Service(), list[str]()
    box = outbox(warnings)
    service.error["a"] = ValueError("bad")
    box.deliver("1", service.send("1", "a"), "a")
    assert box.is_empty()
    assert box.missing() == ["1"]
    assert warnings == ["store refused 1: bad"]


def test_memory_is_bounded_while_the_service_is_down() -> None:
    service, warnings = Service(), list[str]()
    box = outbox(warnings)
    service.error["a"] = OSError("down")
    for number in range(600):
        box.deliver(str(number), service.send(str(number), "a"), "a")
    service.error.clear()
    box.flush()
    assert service.received == [str(n) for n in range(88, 600)]
    assert box.missing() == [str(n) for n in range(88)]
    assert len(warnings) == 2
