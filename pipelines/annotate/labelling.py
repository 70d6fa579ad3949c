"""Answers: given, taken back, adjudicated; and what an item's answers come to.

Every function works inside one write transaction (``tables``). ``Refused`` is raised before anything is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, select, update

from pipelines.annotate.assignment import (
    Leased,
    Nothing,
    State,
    gold_results,
    lease,
    qualifying,
    release,
)
from pipelines.annotate.items import (
    AnnotationItem,
    Answer,
    Choice,
    Decision,
    decide,
    disagree,
)
from pipelines.annotate.people import Person
from pipelines.annotate.tables import items, labels, leases, people, reports, skips, tasks


class Refused(Exception):
    """What a person asked for cannot be done; ``status`` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Recorded:
    """A label is in the store. ``late``: its lease had gone to somebody else, or there was none."""

    item: str
    answer: Answer
    late: bool = False


_MINE = and_(labels.c.item == items.c.id, labels.c.undone.is_(None))
_ASKED = (
    select(
        items.c.id, items.c.gold, items.c.labels, items.c.state, items.c.consumed,
        labels.c.choice, labels.c.strength, labels.c.rationale, labels.c.written,
        leases.c.issued,
    )
)  # fmt: skip


def label(
    db: Connection, person: Person, state: State, item: str, answer: Answer, seconds: float | None, now: float
) -> Recorded:
    """Store ``person``'s answer. The same again changes nothing; raises Refused otherwise where there is one."""
    row = db.execute(
        _ASKED.select_from(
            items.outerjoin(labels, and_(_MINE, labels.c.person == person.id)).outerjoin(
                leases, and_(leases.c.item == items.c.id, leases.c.person == person.id)
            )
        ).where(items.c.id == item)
    ).first()
    if row is None:
        raise Refused(404, f"item {item!r} is unknown here; ask for the next one")
    if row.choice is not None:
        given = Answer(Choice(row.choice), row.strength, row.rationale, row.written)
        if given == answer:
            return Recorded(item, answer)
        raise Refused(409, f"item {item} has your label {row.choice!r} already, which stands; undo it to change it")
    if person.standing == "disqualified":
        raise Refused(409, "the label was not kept: you did not pass the qualification round")
    held = row.issued is not None
    if not held and row.state != "gold" and (row.state != "open" or qualifying(person, state.task)):
        raise Refused(
            409, f"the label was not kept: your lease of item {item} has ended, and it has been decided since"
        )
    took = min(seconds if seconds is not None else now - row.issued if held else 0.0, state.task.lease_s)
    insert_label(db, person.id, state, item, answer, state.swapped(item, person.id), took, now)
    if held:
        db.execute(delete(leases).where(leases.c.person == person.id))
    if row.gold is not None:
        _examine(db, person, state)
    else:
        db.execute(
            update(items)
            .where(items.c.id == item)
            .values(labels=items.c.labels + 1, slots=items.c.slots - (0 if held else 1))
        )
        settle(db, state, item, row.state, [answer.choice] if row.labels == 0 else None)
    return Recorded(item, answer, late=not held)


def insert_label(
    db: Connection, person: int, state: State, item: str, answer: Answer, swapped: bool, seconds: float | None,
    now: float, review: bool = False,
) -> None:  # fmt: skip
    db.execute(
        insert(labels).values(
            item=item, person=person, choice=answer.choice.value, swapped=swapped, strength=answer.strength,
            rationale=answer.rationale, written=answer.written, seconds=seconds,
            guidelines=state.task.definition_hash, created=now, review=review,
        )
    )  # fmt: skip
    counts = {"labels": people.c.labels + 1, "seconds": people.c.seconds + (seconds or 0.0)}
    db.execute(update(people).where(people.c.id == person).values(counts))


def _examine(db: Connection, person: Person, state: State) -> None:
    """The qualification round ends with its last gold item, one way or the other."""
    if not qualifying(person, state.task):
        return
    answered, right = gold_results(db, person.id)
    if answered >= state.task.qualification:
        passed = right >= state.task.qualification_accuracy * answered
        standing = "qualified" if passed else "disqualified"
        db.execute(update(people).where(people.c.id == person.id).values(standing=standing))


def settle(db: Connection, state: State, item: str, before: str, choices: Sequence[Choice] | None = None) -> None:
    """Bring an item's state in line with its labels. ``before`` is the state it has; ``choices`` its labels, if known.

    A decision that a batch has consumed stands as it is.
    """
    if choices is None:
        rows = db.execute(
            select(labels.c.choice, labels.c.review, labels.c.person)
            .where(labels.c.item == item, labels.c.undone.is_(None))
            .order_by(labels.c.id)
        ).all()
        review = [Choice(r.choice) for r in rows if r.review]
        choices = review or [Choice(r.choice) for r in rows]
        judges = [r.person for r in rows]
    else:
        review, judges = [], []
    decision: Decision | None = None
    if not review and len(choices) < state.task.overlap:
        after = "open"
    elif not review and disagree(choices) and _reviewer_besides(db, judges):
        after = "conflict"
    else:
        after, decision = "decided", decide(choices)
    db.execute(
        update(items)
        .where(items.c.id == item, items.c.consumed.is_(None))
        .values(
            state=after,
            outcome=decision.outcome.value if decision else None,
            probability=decision.probability if decision else None,
        )
    )
    opened = int(after == "open") - int(before == "open")
    if opened:
        db.execute(update(tasks).values(open=tasks.c.open + opened))


def _reviewer_besides(db: Connection, judges: Sequence[int]) -> bool:
    """Whether there is a reviewer who did not label the item: nobody adjudicates between themselves and others."""
    reviewers = select(people.c.id).where(people.c.role == "reviewer", people.c.name.is_not(None))
    return db.execute(reviewers.where(people.c.id.not_in(judges)).limit(1)).first() is not None


def undo(db: Connection, person: Person, state: State, now: float) -> Leased | Nothing:
    """Take back ``person``'s last label and lease its item again; raises Refused where a batch has consumed it."""
    last = db.execute(
        select(labels.c.id.label("label"), labels.c.seconds, items.c.id, items.c.content, items.c.state,
               items.c.consumed)
        .select_from(labels.join(items, items.c.id == labels.c.item))
        .where(labels.c.person == person.id, labels.c.undone.is_(None), ~labels.c.review)
        .order_by(labels.c.id.desc())
        .limit(1)
    ).first()  # fmt: skip
    if last is None:
        raise Refused(409, "undo: you have no label to take back")
    if last.consumed is not None:
        raise Refused(409, f"undo: step {last.consumed} has learned from your last label; it stays")
    if person.standing == "disqualified":
        raise Refused(409, "undo: you did not pass the qualification round, whose answers stand")
    if _reviewed(db, last.id):
        raise Refused(409, "undo: a reviewer has decided on your last item; your label stays")
    release(db, person.id)
    _take_back(db, person.id, last.label, last.seconds, now)
    if last.state != "gold":
        db.execute(
            update(items).where(items.c.id == last.id).values(labels=items.c.labels - 1, slots=items.c.slots + 1)
        )
        settle(db, state, last.id, last.state)
    db.execute(delete(skips).where(skips.c.session == person.session, skips.c.item == last.id))
    return lease(db, last.id, last.content, person, state, now)


def _take_back(db: Connection, person: int, label: int, seconds: float | None, now: float) -> None:
    db.execute(update(labels).where(labels.c.id == label).values(undone=now))
    counts = {"labels": people.c.labels - 1, "seconds": people.c.seconds - (seconds or 0.0)}
    db.execute(update(people).where(people.c.id == person).values(counts))


def _reviewed(db: Connection, item: str) -> bool:
    word = select(labels.c.id).where(labels.c.item == item, labels.c.review, labels.c.undone.is_(None))
    return db.execute(word.limit(1)).first() is not None


def skip(db: Connection, person: Person, item: str) -> None:
    """Give an item back, not to be offered again in this session."""
    _need_item(db, item)
    known = select(skips.c.item).where(skips.c.session == person.session, skips.c.item == item)
    if db.execute(known).first() is None:
        db.execute(insert(skips).values(session=person.session, item=item))
    if db.execute(select(leases.c.item).where(leases.c.person == person.id)).scalar() == item:
        release(db, person.id)


def report(db: Connection, person: Person, item: str, reason: str, now: float) -> None:
    """Flag an item's content; the same report again changes nothing."""
    _need_item(db, item)
    same = (reports.c.item == item) & (reports.c.person == person.id) & (reports.c.reason == reason)
    if db.execute(select(reports.c.id).where(same)).first() is None:
        db.execute(insert(reports).values(item=item, person=person.id, reason=reason, created=now))


def _need_item(db: Connection, item: str) -> None:
    if db.execute(select(items.c.id).where(items.c.id == item)).first() is None:
        raise Refused(404, f"item {item!r} is unknown here; ask for the next one")


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
    own = select(labels.c.id).where(_MINE, labels.c.person == reviewer.id)
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
        _take_back(db, reviewer.id, mine.id, mine.seconds, now)
    elif mine is not None:
        raise Refused(409, f"item {item} has a label of your own: another reviewer decides")
    elif found.state != "conflict":
        raise Refused(409, f"item {item} is {found.state}, not in conflict; load the conflicts again")
    took = None if seconds is None else min(seconds, state.task.lease_s)
    insert_label(db, reviewer.id, state, item, answer, state.swapped(item, reviewer.id), took, now, review=True)
    settle(db, state, item, found.state)
    return Recorded(item, answer)
