"""The store of what people are asked and what they answered: a file or a database, outside of any process's life."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy import ColumnElement, Connection, func, insert, select, update
from sqlalchemy.engine import make_url

from pipelines.annotate.assignment import State, state_of
from pipelines.annotate.items import AnnotationError, AnnotationItem, Choice, Decision, Role, Task
from pipelines.annotate.labelling import settle
from pipelines.annotate.people import add_person
from pipelines.annotate.tables import items, labels, open_database, people, tasks

T = TypeVar("T")
STORE_NAME = "annotations.db"  # in a run's directory, and after the name of a file of items
_CHUNK = 500  # ids of one query; databases limit the parameters of a statement


@dataclass(frozen=True, slots=True)
class Gold:
    """An item whose right answer is known."""

    item: AnnotationItem
    choice: Choice


@dataclass(frozen=True, slots=True)
class Given:
    """A label as its item's decision needs it."""

    annotator: str
    """Empty where the person has been erased."""
    choice: Choice
    strength: int | None
    rationale: str
    written: str
    seconds: float
    guidelines: str
    """Hash of what the person went by."""


@dataclass(frozen=True, slots=True)
class Decided:
    """An item with what its answers have come to."""

    id: str
    step: int
    item: AnnotationItem
    decision: Decision
    labels: tuple[Given, ...]
    """In the order they were given; a reviewer's word alone where there is one."""


@dataclass(frozen=True, slots=True)
class Counts:
    items: int
    open: int
    conflicts: int
    decided: int


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path.expanduser().resolve()}"


class Store:
    """One task and its items. Safe to use from several threads and processes at once."""

    def __init__(self, url: str, create: bool = True) -> None:
        """Open the database at ``url``, making its tables where they are missing; raises AnnotationError."""
        self.url = url
        self._database = open_database(url, create)

    @property
    def shown_url(self) -> str:
        return make_url(self.url).render_as_string(hide_password=True)

    def write(self, work: Callable[[Connection], T]) -> T:
        """``work`` in one transaction that excludes all other writers; durable when it returns."""
        with self._database.writer.begin() as db:
            return work(db)

    def read(self, work: Callable[[Connection], T]) -> T:
        """``work`` on one consistent, committed state."""
        with self._database.reader.begin() as db:
            return work(db)

    def vacuum(self) -> None:
        """Drop what was deleted or overwritten from the database's files."""
        sqlite = self._database.writer.dialect.name == "sqlite"
        raw = self._database.writer.raw_connection()  # vacuuming is done outside of any transaction
        try:
            if sqlite:
                raw.cursor().execute("VACUUM")
                raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            else:
                raw.driver_connection.autocommit = True  # type: ignore[union-attr]
                raw.cursor().execute("VACUUM FULL")
        finally:
            raw.invalidate()
            raw.close()

    def close(self) -> None:
        self._database.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what is asked -----------------------------------------------------------------------------------------------

    def configure(self, task: Task, owner: str, expecting: bool) -> None:
        """Set what is asked from here on. A new overlap holds for all items but those that a batch has consumed.

        Raises AnnotationError where the store belongs to another ``owner``, or holds items of another mode.
        """

        def work(db: Connection) -> None:
            row = db.execute(select(tasks)).first()
            if row is None:
                db.execute(
                    insert(tasks).values(
                        owner=owner, secret=secrets.token_hex(16), rules=task.to_json(), expecting=expecting,
                        total=0, open=0,
                    )
                )  # fmt: skip
                return
            if row.owner != owner:
                raise AnnotationError(
                    f"store = {self.shown_url} belongs to {row.owner}, not to {owner}: "
                    f"give every run a store of its own"
                )
            old = Task.from_json(row.rules)
            if old.mode != task.mode and row.total:
                raise AnnotationError(
                    f"mode = {task.mode}, but store = {self.shown_url} holds {row.total} items of mode {old.mode}: "
                    f"name another store"
                )
            db.execute(update(tasks).values(rules=task.to_json(), expecting=expecting))
            if old.overlap != task.overlap:
                _change_overlap(db, task.overlap - old.overlap)

        self.write(work)

    def state(self) -> State:
        """The task; raises AnnotationError where nothing was ever asked here."""
        if self.read(lambda db: db.execute(select(tasks.c.id)).first()) is None:
            raise AnnotationError(
                f"store = {self.shown_url} has no task: it was never used by a run or by `rondo annotate FILE`"
            )
        return self.read(state_of)

    def finish(self) -> None:
        """No more items will come: who has answered all there is, is done rather than waiting."""
        self.write(lambda db: db.execute(update(tasks).values(expecting=False)))

    def add_people(self, names: Iterable[str], role: Role) -> None:
        self.write(lambda db: [add_person(db, name, role) for name in names])

    # -- items -------------------------------------------------------------------------------------------------------

    def add(self, new: Sequence[AnnotationItem], step: int = 0) -> int:
        """Add items to be judged; those that are there already stay as they are. Returns how many were new."""
        return self.write(lambda db: add_items(db, [(i, None) for i in new], step))

    def add_gold(self, gold: Sequence[Gold]) -> int:
        return self.write(lambda db: add_items(db, [(g.item, g.choice) for g in gold], 0))

    def known(self, ids: Sequence[str]) -> set[str]:
        return self.read(lambda db: _known(db, ids))

    # -- decisions ---------------------------------------------------------------------------------------------------

    def counts(self, step: int | None = None) -> Counts:
        """How many items there are in which state; of one step, or of all. Gold is not counted."""
        query = select(items.c.state, func.count()).where(items.c.state != "gold").group_by(items.c.state)
        if step is not None:
            query = query.where(items.c.step == step)
        by = {r[0]: int(r[1]) for r in self.read(lambda db: db.execute(query).all())}
        states = [by.get(s, 0) for s in ("open", "conflict", "decided")]
        return Counts(sum(states), *states)

    def count_decided(self, ids: Sequence[str]) -> int:
        """How many of these items are decided."""

        def work(db: Connection) -> int:
            among = select(func.count()).select_from(items).where(items.c.state == "decided")
            return sum(int(db.execute(among.where(items.c.id.in_(some))).scalar_one()) for some in _chunks(ids))

        return self.read(work)

    def decided(self, ids: Sequence[str]) -> list[Decided]:
        """Those of these items that are decided, consumed or not, in the order they were asked."""
        return self.read(
            lambda db: [
                d for some in _chunks(ids) for d in _decided(db, items.c.id.in_(some) & (items.c.state == "decided"))
            ]
        )

    def unconsumed(self, up_to_step: int) -> list[Decided]:
        """What is decided and was never consumed, of the steps 1 to ``up_to_step``, in the order it was asked."""
        waiting = (items.c.state == "decided") & items.c.consumed.is_(None) & items.c.step.between(1, up_to_step)
        return self.read(lambda db: _decided(db, waiting))

    def consume(self, step: int, ids: Sequence[str]) -> int:
        """``step`` has taken these decisions over: they can no longer be undone. Returns how many were new."""

        def work(db: Connection) -> int:
            done = 0
            for some in _chunks(ids):
                done += db.execute(
                    update(items)
                    .where(items.c.id.in_(some), items.c.consumed.is_(None), items.c.state == "decided")
                    .values(consumed=step)
                ).rowcount
            return done

        return self.write(work)


def _change_overlap(db: Connection, difference: int) -> None:
    ours = items.c.gold.is_(None) & items.c.consumed.is_(None)
    db.execute(update(items).where(ours).values(slots=items.c.slots + difference))
    state = state_of(db)
    labelled = select(items.c.id, items.c.state).where(ours, items.c.labels > 0)
    for row in db.execute(labelled).all():
        settle(db, state, row.id, row.state)


def _decided(db: Connection, wanted: ColumnElement[bool]) -> list[Decided]:
    given: dict[str, list[tuple[bool, Given]]] = {}
    for r in db.execute(
        select(labels, people.c.name)
        .join(items, items.c.id == labels.c.item)
        .join(people, people.c.id == labels.c.person)
        .where(wanted, labels.c.undone.is_(None))
        .order_by(labels.c.id)
    ):
        word = Given(r.name or "", Choice(r.choice), r.strength, r.rationale, r.written, r.seconds or 0.0, r.guidelines)
        given.setdefault(r.item, []).append((r.review, word))
    return [
        Decided(
            r.id,
            r.step,
            AnnotationItem.from_json(r.content),
            Decision(Choice(r.outcome), r.probability),
            _deciding(given.get(r.id, [])),
        )
        for r in db.execute(select(items).where(wanted).order_by(items.c.step, items.c.seq))
    ]


def _deciding(given: Sequence[tuple[bool, Given]]) -> tuple[Given, ...]:
    review = tuple(g for reviewed, g in given if reviewed)
    return review or tuple(g for _, g in given)


def _chunks(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[i : i + _CHUNK] for i in range(0, len(ids), _CHUNK))


def _known(db: Connection, ids: Sequence[str]) -> set[str]:
    return {i for some in _chunks(ids) for i in db.execute(select(items.c.id).where(items.c.id.in_(some))).scalars()}


def add_items(db: Connection, new: Sequence[tuple[AnnotationItem, Choice | None]], step: int = 0) -> int:
    """``Store.add`` inside a transaction; a choice makes an item gold."""
    state = state_of(db)
    unique = {item.id: (item, gold) for item, gold in new}
    for item, _ in unique.values():
        if item.mode != state.task.mode:
            raise AnnotationError(
                f"item {item.id} has {len(item.responses)} responses, but the store's mode is {state.task.mode}: "
                f"pairs have two, labels one"
            )
    known = _known(db, list(unique))
    fresh = [i for i in unique if i not in known]
    seq = db.execute(select(func.coalesce(func.max(items.c.seq), 0))).scalar_one()
    rows = []
    for number, id in enumerate(fresh, start=seq + 1):
        item, gold = unique[id]
        rows.append(
            {
                "id": id, "seq": number, "step": step, "content": item.to_json(),
                "gold": None if gold is None else gold.value,
                "slots": state.task.overlap if gold is None else 0,
                "state": "open" if gold is None else "gold",
            }
        )  # fmt: skip
    if rows:
        db.execute(insert(items), rows)
    asked = sum(r["gold"] is None for r in rows)
    db.execute(update(tasks).values(total=tasks.c.total + asked, open=tasks.c.open + asked))
    return len(rows)
