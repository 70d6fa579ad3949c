"""How an input is tried: within bounds of time, and with an answer or a refusal that a person can act on.

``RONDO_FUZZ`` is how many inputs are tried altogether, ``RONDO_FUZZ_SEED`` which ones.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from pipelines.annotate.store import Store
from pipelines.annotate.tables import metadata
from pipelines.failures import is_expected

TOTAL = int(os.environ.get("RONDO_FUZZ", "4000"))
SEED = int(os.environ.get("RONDO_FUZZ_SEED", "0"))
HANG_S = 60.0  # an input that takes so long is not slow but stuck
inputs = 0
accepted: Counter[str] = Counter()
refused: Counter[str] = Counter()


def fuzzed(share: float, *strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A property that has to hold for its ``share`` of all inputs, drawn from ``strategies``."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        tuned = settings(
            max_examples=max(round(TOTAL * share), 10), deadline=None, database=None, print_blob=True,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip

        @wraps(test)
        def counted(*arguments: Any, **named: Any) -> None:
            global inputs
            inputs += 1
            test(*arguments, **named)

        return seed(SEED)(tuned(given(*strategies)(counted)))

    return decorate


class Stuck(BaseException):
    """Not an Exception: nothing on the way up may take it for an error of the input."""


@contextmanager
def no_hang() -> Iterator[None]:
    def stuck(*_: object) -> None:
        raise Stuck(f"no answer within {HANG_S:.0f} s")

    before = signal.signal(signal.SIGALRM, stuck)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tried(what: str, work: Callable[[], object], *names: str) -> object | None:
    """``work``'s value, or None where it was refused as it should be: in words that hold one of ``names``."""
    with no_hang():
        try:
            value = work()
        except Exception as error:
            if not is_expected(error):
                raise
            message = str(error)
            assert any(name in message for name in names), f"no place in the message: {message!r}"
            assert "Traceback" not in message
            assert len(message) < 20_000, f"{len(message)} characters: {message[:200]!r}"
            refused[what] += 1
            return None
    accepted[what] += 1
    return value if value is not None else True


def rows(store: Store) -> list[tuple[Any, ...]]:
    """Every row of a store of annotations."""

    def read(db: Connection) -> list[tuple[Any, ...]]:
        return [tuple(row) for table in metadata.sorted_tables for row in db.execute(table.select())]

    return store.read(read)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file under ``directory``, to be compared with what is there later."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}
