"""Who may answer: people, their one-time codes, their sessions. Every secret is stored as a hash only.

A secret is handed out as ``<id>.<secret>``: the id finds the row, the secret is compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from pipelines.annotate.items import AnnotationError, Role, Standing
from pipelines.annotate.tables import items as items_table
from pipelines.annotate.tables import labels, leases, people, reports, sessions

SESSION_S = 12 * 3600.0
CODE_S = 7 * 24 * 3600.0  # an unused link works this long


@dataclass(frozen=True, slots=True)
class Person:
    """An annotator or reviewer, as a session shows them."""

    id: int
    name: str
    role: Role
    standing: Standing
    labels: int
    """Labels they have given and not taken back."""
    seconds: float
    """What those took together."""
    session: str
    """Public id of the session."""


@dataclass(frozen=True, slots=True)
class Secret:
    """What a cookie or a link's code carries."""

    id: str
    secret: str

    def __str__(self) -> str:
        return f"{self.id}.{self.secret}"

    def __repr__(self) -> str:
        return f"Secret({self.id!r}, ...)"  # must not reach a log with a traceback

    @classmethod
    def new(cls) -> Secret:
        return cls(secrets.token_hex(8), secrets.token_urlsafe(24))

    @classmethod
    def parse(cls, text: str) -> Secret:
        """Anything is accepted: what is no secret matches nothing."""
        id, _, secret = text.partition(".")
        return cls(id[:16], secret[:64])

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.secret.encode()).hexdigest()

    def matches(self, hash: str) -> bool:
        return hmac.compare_digest(self.hash, hash)

    @property
    def csrf(self) -> str:
        """The token that a page must send beside this session's cookie: follows from the secret, reveals nothing."""
        return hmac.new(self.secret.encode(), b"csrf", hashlib.sha256).hexdigest()


def add_person(db: Connection, name: str, role: Role | None) -> int:
    """The id of the person of that name, who is added if unknown; the role becomes ``role`` (None: stays)."""
    if not name.strip() or len(name) > 200:
        raise AnnotationError(f"annotator {name!r}: a name has 1 to 200 characters")
    known = db.execute(select(people.c.id, people.c.role).where(people.c.name == name)).first()
    if known is None:
        return int(
            db.execute(insert(people).values(name=name, role=role or "annotator").returning(people.c.id)).scalar_one()
        )
    if role is not None and known.role != role:
        db.execute(update(people).where(people.c.id == known.id).values(role=role))
    return int(known.id)


def new_code(db: Connection, name: str, now: float) -> str:
    """A fresh one-time code for ``name``; one that was not used yet stops working. Raises AnnotationError."""
    code = Secret.new()
    done = db.execute(
        update(people).where(people.c.name == name).values(code=code.id, code_hash=code.hash, code_expires=now + CODE_S)
    )
    if not done.rowcount:
        raise AnnotationError(f"no annotator is called {name!r}; {_known(db)}")
    return str(code)


def _known(db: Connection) -> str:
    return f"known are {', '.join(name for name, _ in known_people(db)) or 'none'}"


_BY_CODE = select(people.c.id, people.c.code_hash, people.c.code_expires)


def open_session(db: Connection, code: str, now: float) -> Secret | None:
    """Exchange a one-time code; None where it is unknown, used or expired."""
    given = Secret.parse(code)
    found = db.execute(_BY_CODE.where(people.c.code == given.id)).first()
    if found is None or not given.matches(found.code_hash) or now >= found.code_expires:
        return None
    db.execute(update(people).where(people.c.id == found.id).values(code=None, code_hash=None, code_expires=None))
    db.execute(delete(sessions).where(sessions.c.expires <= now))
    session = Secret.new()
    db.execute(insert(sessions).values(id=session.id, person=found.id, hash=session.hash, expires=now + SESSION_S))
    return session


SESSION = (  # statements that every request makes are built once: building costs more than the database's work
    select(
        sessions.c.id.label("session"), sessions.c.hash, sessions.c.expires,
        people.c.id, people.c.name, people.c.role, people.c.standing, people.c.labels, people.c.seconds,
    )
    .join(people, people.c.id == sessions.c.person)
    .where(sessions.c.id == bindparam("session"))
)  # fmt: skip


def who(db: Connection, session: Secret, now: float) -> Person | None:
    """The person behind a session's cookie; None where it is unknown, forged, closed or expired."""
    return person_of(db.execute(SESSION, {"session": session.id}).first(), session, now)


def person_of(row: Any, session: Secret, now: float) -> Person | None:
    """``who``, of a row that ``SESSION`` has found."""
    if row is None or not session.matches(row.hash) or now >= row.expires:
        return None
    return Person(row.id, row.name, row.role, row.standing, row.labels, row.seconds, row.session)


def close_session(db: Connection, session: str) -> None:
    db.execute(delete(sessions).where(sessions.c.id == session))


def known_people(db: Connection) -> list[tuple[str, Role]]:
    """(name, role) of everybody who was not erased, in the order they were added."""
    rows = db.execute(select(people.c.name, people.c.role).where(people.c.name.is_not(None)).order_by(people.c.id))
    return [(r.name, cast(Role, r.role)) for r in rows]


def erase(db: Connection, name: str) -> int:
    """Forget a person: name, links, sessions, words and times. Returns how many labels they had given.

    The choices stay, under nobody's name, so that what was decided and trained by them still adds up. Raises
    AnnotationError where nobody has that name.
    """
    id = db.execute(select(people.c.id).where(people.c.name == name)).scalar()
    if id is None:
        raise AnnotationError(f"no annotator is called {name!r}; {_known(db)}")
    for lease in db.execute(select(leases.c.item).where(leases.c.person == id)).all():
        db.execute(update(items_table).where(items_table.c.id == lease.item).values(slots=items_table.c.slots + 1))
    db.execute(delete(leases).where(leases.c.person == id))
    db.execute(delete(sessions).where(sessions.c.person == id))
    done = db.execute(
        update(labels).where(labels.c.person == id).values(rationale="", written="", seconds=None, created=0)
    )
    db.execute(update(reports).where(reports.c.person == id).values(reason="", created=0))
    db.execute(
        update(people)
        .where(people.c.id == id)
        .values(name=None, seconds=0, code=None, code_hash=None, code_expires=None)
    )
    return int(done.rowcount)


def by_id(db: Connection, id: int, session: str) -> Person:
    """A person's present counts."""
    row = db.execute(select(people).where(people.c.id == id)).one()
    role, standing = cast(Role, row.role), cast(Standing, row.standing)
    return Person(row.id, row.name, role, standing, row.labels, row.seconds, session)
