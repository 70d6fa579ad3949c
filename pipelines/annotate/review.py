"""Conflicts between annotators, and the word of a reviewer that decides them. Inside one transaction (``tables``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from pipelines.annotate.assignment import State
from pipelines.annotate.items import AnnotationItem, Answer, Choice
from pipelines.annotate.labelling import STANDS, Recorded, Refused, insert_label, settle, take_back
from pipelines.annotate.people import Person
from pipelines.annotate.tables import items, labels


@dataclass(frozen=True, slots=True)
class Conflict:
    """An item that its annotators disagree about, as a reviewer sees it."""

    id: str
    item: AnnotationItem
    swapped: bool
    answers: tuple[Answer, ...]
    """Whose they are is not said: the reviewer decides on the responses."""


def conflicts(db: Connection, reviewer: Person, state: State, limit: int = 50) -> tuple[list[Conflict], int]:
    """The oldest ``limit`` conflicts that ``reviewer`` may decide, and how many there are."""
    own = select(labels.c.id).where(STANDS, labels.c.person == reviewer.id)
    waiting = (items.c.state == "conflict") & ~own.exists()
    total = db.execute(select(func.count()).select_from(items).where(waiting)).scalar_one()
    rows = db.execute(
        select(items.c.id, items.c.content).where(waiting).order_by(items.c.step, items.c.seq).limit(limit)
    ).all()
    given = db.execute(
        select(labels).where(labels.c.item.in_([r.id for r in rows]), labels.c.undone.is_(None)).order_by(labels.c.id)
    ).all()
    answers: dict[str, list[Answer]] = {}
    for g in given:
        answers.setdefault(g.item, []).append(Answer(Choice(g.choice), g.strength, g.rationale, g.written))
    found = [
        Conflict(r.id, AnnotationItem.from_json(r.content), state.swapped(r.id, reviewer.id), tuple(answers[r.id]))
        for r in rows
    ]
    return found, int(total)


def resolve(
    db: Connection, reviewer: Person, state: State, item: str, answer: Answer, seconds: float | None, now: float
) -> Recorded:
    """A reviewer's word on a conflict, which decides it. Another word by the same reviewer replaces it."""
    found = db.execute(select(items.c.state, items.c.consumed).where(items.c.id == item)).first()
    if found is None:
        raise Refused(404, f"item {item!r} is unknown here; load the conflicts again")
    mine: Any = db.execute(
        select(labels).where(labels.c.item == item, labels.c.person == reviewer.id, labels.c.undone.is_(None))
    ).first()
    if mine is not None and mine.review:
        if Answer(Choice(mine.choice), mine.strength, mine.rationale, mine.written) == answer:
            return Recorded(item, answer)
        if found.consumed is not None:
            raise Refused(409, f"item {item}: step {found.consumed} has learned from your decision; it stays")
        take_back(db, reviewer.id, mine.id, mine.seconds, now)
    elif mine is not None:
        raise Refused(409, f"item {item} has a label of your own: another reviewer decides")
    elif found.state != "conflict":
        raise Refused(409, f"item {item} is {found.state}, not in conflict; load the conflicts again")
    took = None if seconds is None else min(seconds, state.task.lease_s)
    insert_label(db, reviewer.id, state, item, answer, state.swapped(item, reviewer.id), took, now, review=True)
    settle(db, state, item, found.state)
    return Recorded(item, answer)
