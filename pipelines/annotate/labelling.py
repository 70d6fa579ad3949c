"""Answers: given and taken back; and what an item's answers come to.

Every function works inside one write transaction (``tables``). ``Refused`` is raised before anything is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import BindParameter, Connection, and_, bindparam, delete, insert, select, update

from pipelines.annotate.assignment import (
    RELEASE,
    Leased,
    Nothing,
    State,
    gold_results,
    lease,
    qualifying,
    release,
)
from pipelines.annotate.items import (
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


STANDS = and_(labels.c.item == items.c.id, labels.c.undone.is_(None))
_ME: BindParameter[int] = bindparam("who")
_ASKED = (  # an item with somebody's label and lease, if they have any
    select(
        items.c.gold, items.c.labels, items.c.state,
        labels.c.choice, labels.c.strength, labels.c.rationale, labels.c.written,
        leases.c.issued,
    )
    .select_from(
        items.outerjoin(labels, and_(STANDS, labels.c.person == _ME)).outerjoin(
            leases, and_(leases.c.item == items.c.id, leases.c.person == _ME)
        )
    )
    .where(items.c.id == bindparam("which"))
)  # fmt: skip
_INSERT = insert(labels)
_COUNT = (
    update(people)
    .where(people.c.id == _ME)
    .values(labels=people.c.labels + bindparam("more"), seconds=people.c.seconds + bindparam("took"))
)
_COUNT_ITEM = (
    update(items)
    .where(items.c.id == bindparam("which"))
    .values(labels=items.c.labels + bindparam("more"), slots=items.c.slots - bindparam("taken"))
)
_SETTLE = (
    update(items)
    .where(items.c.id == bindparam("which"), items.c.consumed.is_(None))
    .values(state=bindparam("after"), outcome=bindparam("decision"), probability=bindparam("share"))
)
_COUNT_AND_SETTLE = (
    update(items)
    .where(items.c.id == bindparam("which"))
    .values(
        labels=items.c.labels + 1, slots=items.c.slots - bindparam("taken"), state="decided",
        outcome=bindparam("decision"), probability=bindparam("share"),
    )
)  # fmt: skip
_OPENED = update(tasks).values(open=tasks.c.open + bindparam("opened"))


def label(
    db: Connection, person: Person, state: State, item: str, answer: Answer, seconds: float | None, now: float
) -> Recorded:
    """Store ``person``'s answer. The same again changes nothing; raises Refused otherwise where there is one."""
    row = db.execute(_ASKED, {"which": item, "who": person.id}).first()
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
        db.execute(RELEASE, {"who": person.id}).scalar()  # its slot stays taken: by the label
    taken = 0 if held else 1
    if row.gold is not None:
        _examine(db, person, state)
    elif state.task.overlap == 1 and row.labels == 0:  # nearly always: then one statement does
        decision = decide([answer.choice])
        db.execute(
            _COUNT_AND_SETTLE,
            {"which": item, "taken": taken, "decision": decision.outcome.value, "share": decision.probability},
        )
        db.execute(_OPENED, {"opened": -1})
    else:
        db.execute(_COUNT_ITEM, {"which": item, "more": 1, "taken": taken})
        settle(db, state, item, row.state)
    return Recorded(item, answer, late=not held)


def insert_label(
    db: Connection, person: int, state: State, item: str, answer: Answer, swapped: bool, seconds: float | None,
    now: float, review: bool = False,
) -> None:  # fmt: skip
    db.execute(
        _INSERT,
        {
            "item": item, "person": person, "choice": answer.choice.value, "swapped": swapped,
            "strength": answer.strength, "rationale": answer.rationale, "written": answer.written, "seconds": seconds,
            "guidelines": state.task.definition_hash, "created": now, "review": review, "undone": None,
        },
    )  # fmt: skip
    db.execute(_COUNT, {"who": person, "more": 1, "took": seconds or 0.0})


def _examine(db: Connection, person: Person, state: State) -> None:
    """The qualification round ends with its last gold item, one way or the other."""
    if not qualifying(person, state.task):
        return
    answered, right = gold_results(db, person.id)
    if answered >= state.task.qualification:
        passed = right >= state.task.qualification_accuracy * answered
        standing = "qualified" if passed else "disqualified"
        db.execute(update(people).where(people.c.id == person.id).values(standing=standing))


def settle(db: Connection, state: State, item: str, before: str) -> None:
    """Bring an item's state, which is ``before``, in line with its labels.

    A decision that a batch has consumed stands as it is.
    """
    rows = db.execute(
        select(labels.c.choice, labels.c.review, labels.c.person)
        .where(labels.c.item == item, labels.c.undone.is_(None))
        .order_by(labels.c.id)
    ).all()
    review = [Choice(r.choice) for r in rows if r.review]
    choices = review or [Choice(r.choice) for r in rows]
    decision: Decision | None = None
    if not review and len(choices) < state.task.overlap:
        after = "open"
    elif not review and disagree(choices) and _reviewer_besides(db, [r.person for r in rows]):
        after = "conflict"
    else:
        after, decision = "decided", decide(choices)
    outcome, share = (decision.outcome.value, decision.probability) if decision else (None, None)
    db.execute(_SETTLE, {"which": item, "after": after, "decision": outcome, "share": share})
    opened = int(after == "open") - int(before == "open")
    if opened:
        db.execute(_OPENED, {"opened": opened})


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
    take_back(db, person.id, last.label, last.seconds, now)
    if last.state != "gold":
        db.execute(_COUNT_ITEM, {"which": last.id, "more": -1, "taken": -1})
        settle(db, state, last.id, last.state)
    db.execute(delete(skips).where(skips.c.session == person.session, skips.c.item == last.id))
    return lease(db, last.id, last.content, person, state, now)


def take_back(db: Connection, person: int, label: int, seconds: float | None, now: float) -> None:
    db.execute(update(labels).where(labels.c.id == label).values(undone=now))
    db.execute(_COUNT, {"who": person, "more": -1, "took": -(seconds or 0.0)})


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
