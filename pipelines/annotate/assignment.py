"""Who gets which item: leases, gold items, the qualification round.

Every function works inside one write transaction (``tables``): nobody else leases or labels meanwhile.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, bindparam, delete, func, insert, literal_column, select, true, update

from pipelines.annotate.items import AnnotationItem, Task
from pipelines.annotate.people import SESSION, Person, Secret, person_of
from pipelines.annotate.tables import items, labels, leases, skips, tasks

_chance = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Leased:
    """An item that a person holds, and how it is shown to them."""

    id: str
    item: AnnotationItem
    swapped: bool
    """The first response stands on the right."""
    expires: float
    """Seconds since the epoch."""


Nothing = Literal["done", "waiting", "disqualified"]


@dataclass(frozen=True, slots=True)
class Progress:
    mine: int
    """Labels this person has given."""
    remaining: int
    """Items that still need labels, and not this person's already."""
    total: int
    seconds_per_item: float | None


@dataclass(frozen=True, slots=True)
class State:
    """The row of the store's task."""

    secret: str
    task: Task
    expecting: bool
    total: int
    open: int

    def swapped(self, item: str, person: int) -> bool:
        """Whether ``person`` sees the first response on the right: random a pair, always the same, unpredictable."""
        digest = hashlib.sha256(f"{self.secret} {item} {person}".encode()).digest()
        return self.task.mode == "pairs" and bool(digest[0] & 1)


_STATE = select(tasks.c.secret.label("seed"), tasks.c.rules, tasks.c.expecting, tasks.c.total, tasks.c.open)
_RECOGNISED = SESSION.add_columns(*_STATE.selected_columns).join(tasks, true())
_parsed: dict[str, Task] = {}  # the rules hardly ever change; parsing them for every request would cost more than it


def state_of(db: Connection) -> State:
    return _state(db.execute(_STATE).one())


def recognise(db: Connection, session: Secret, now: float) -> tuple[Person, State] | None:
    """``who`` and ``state_of`` at once."""
    row = db.execute(_RECOGNISED, {"session": session.id}).first()
    person = person_of(row, session, now)
    return None if row is None or person is None else (person, _state(row))


def _state(row: Any) -> State:
    task = _parsed.get(row.rules)
    if task is None:
        _parsed.clear()
        task = _parsed[row.rules] = Task.from_json(row.rules)
    return State(row.seed, task, row.expecting, row.total, row.open)


def progress(db: Connection, person: Person, state: State) -> Progress:
    remaining = state.open
    if state.task.overlap > 1:  # else nobody's label leaves an item open
        mine = select(func.count()).select_from(labels.join(items, items.c.id == labels.c.item))
        remaining -= db.execute(
            mine.where(labels.c.person == person.id, labels.c.undone.is_(None), items.c.state == "open",
                       items.c.gold.is_(None))
        ).scalar_one()  # fmt: skip
    pace = person.seconds / person.labels if person.labels else None
    return Progress(person.labels, remaining, state.total, pace)


_LEASES = (  # somebody's own, and all that have ended
    select(leases.c.person, leases.c.expires, items.c.id, items.c.content)
    .join(items, items.c.id == leases.c.item)
    .where((leases.c.person == bindparam("who")) | (leases.c.expires <= bindparam("now")))
)
_LEASE = insert(leases)
RELEASE = delete(leases).where(leases.c.person == bindparam("who")).returning(leases.c.item)
_TAKE_SLOT = (
    update(items)
    .where(items.c.id == bindparam("which"), items.c.gold.is_(None))
    .values(slots=items.c.slots - bindparam("taken"))
)
_MINE = select(labels.c.id).where(
    labels.c.item == items.c.id, labels.c.person == bindparam("who"), labels.c.undone.is_(None)
)
_SKIPPED = select(skips.c.item).where(skips.c.item == items.c.id, skips.c.session == bindparam("session"))
_UNSEEN = select(items.c.id, items.c.content).where(~_MINE.exists(), ~_SKIPPED.exists()).limit(literal_column("1"))
_GOLD = _UNSEEN.where(items.c.state == "gold").order_by(items.c.seq)
# The literal lets SQLite use the partial index, in whose order the oldest step comes first.
_FREE = _UNSEEN.where(items.c.slots > literal_column("0")).order_by(items.c.step, items.c.seq)


def next_item(db: Connection, person: Person, state: State, now: float) -> Leased | Nothing:
    """The item that ``person`` holds, or a newly leased one, or why there is none."""
    if person.standing == "disqualified":
        return "disqualified"
    for row in db.execute(_LEASES, {"who": person.id, "now": now}).all():
        if row.expires > now:
            return _leased(row.id, row.content, state, person, row.expires)
        release(db, row.person)
    picked = _pick(db, person, state)
    if picked is None:
        return "waiting" if state.expecting or _others_hold(db, person) else "done"
    return lease(db, *picked, person, state, now)


def lease(db: Connection, item: str, content: str, person: Person, state: State, now: float) -> Leased:
    """Give an item, with its content as stored, to somebody who holds none."""
    expires = now + state.task.lease_s
    db.execute(_LEASE, {"person": person.id, "item": item, "issued": now, "expires": expires})
    db.execute(_TAKE_SLOT, {"which": item, "taken": 1})
    return _leased(item, content, state, person, expires)


def release(db: Connection, person: int) -> None:
    """Give back what ``person`` holds."""
    item = db.execute(RELEASE, {"who": person}).scalar()
    if item is not None:
        db.execute(_TAKE_SLOT, {"which": item, "taken": -1})


def _leased(item: str, content: str, state: State, person: Person, expires: float) -> Leased:
    return Leased(item, AnnotationItem.from_json(content), state.swapped(item, person.id), expires)


def _pick(db: Connection, person: Person, state: State) -> tuple[str, str] | None:
    """(id, content) of an item for ``person``: neither labelled by them, nor skipped in this session."""
    me = {"who": person.id, "session": person.session}
    row = None
    qualifies = qualifying(person, state.task)
    if qualifies or (state.task.gold_share and _chance.random() < state.task.gold_share):
        row = db.execute(_GOLD, me).first()
    if row is None and not qualifies:
        row = db.execute(_FREE, me).first()
    return None if row is None else (row.id, row.content)


def qualifying(person: Person, task: Task) -> bool:
    """Whether ``person`` still is in the qualification round."""
    return task.qualification > 0 and person.standing == "new" and person.role == "annotator"


def gold_results(db: Connection, person: int) -> tuple[int, int]:
    """(gold items that a person answered, how many of those right)."""
    row = db.execute(
        select(func.count(), func.count().filter(labels.c.choice == items.c.gold))
        .select_from(labels.join(items, items.c.id == labels.c.item))
        .where(labels.c.person == person, labels.c.undone.is_(None), items.c.gold.is_not(None))
    ).one()
    return int(row[0]), int(row[1])


def _others_hold(db: Connection, person: Person) -> bool:
    """Whether somebody else holds an item that may come back."""
    return db.execute(select(leases.c.person).where(leases.c.person != person.id).limit(1)).first() is not None
