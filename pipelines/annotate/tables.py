"""The tables, and how a database is opened so that what is committed stays.

One writer at a time, on both databases: SQLite's BEGIN IMMEDIATE, PostgreSQL's advisory lock. What a write transaction
reads therefore stays true until it commits, whatever other servers work on the same store.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from pipelines.annotate.items import AnnotationError

metadata = MetaData()
# Sequence numbers grow by one an item or label; SQLite only counts by itself where the type is INTEGER.
_ItemId = String(16)


def _person(**options: Any) -> Column[int]:
    return Column("person", Integer, ForeignKey("people.id"), nullable=False, **options)


def _item(**options: Any) -> Column[str]:
    return Column("item", _ItemId, ForeignKey("items.id"), nullable=False, **options)


tasks = Table(  # one row
    "tasks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("owner", Text, nullable=False),  # whose items these are: a run's directory, or a file
    Column("secret", String(64), nullable=False),  # seeds the order of presentation, so that nobody can predict it
    Column("rules", Text, nullable=False),  # JSON of items.Task
    Column("expecting", Boolean, nullable=False),  # whether more items may come
    Column("total", Integer, nullable=False),  # items, gold not counted
    Column("open", Integer, nullable=False),  # of them, those that still wait for labels
)
people = Table(
    "people",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, unique=True),  # null: erased on request
    Column("role", String(16), nullable=False),
    Column("labels", Integer, nullable=False, default=0),
    Column("seconds", Float, nullable=False, default=0.0),  # of all labels together
    Column("standing", String(16), nullable=False, default="new"),  # of the qualification round: items.Standing
    Column("code", String(16), unique=True),  # the public half of the one-time code
    Column("code_hash", String(64)),
    Column("code_expires", Float),
)
sessions = Table(
    "sessions",
    metadata,
    Column("id", String(16), primary_key=True),  # the public half of the cookie
    _person(),
    Column("hash", String(64), nullable=False),
    Column("expires", Float, nullable=False),
)
items = Table(
    "items",
    metadata,
    Column("id", _ItemId, primary_key=True),
    Column("seq", Integer, nullable=False, unique=True),  # order of arrival
    Column("step", Integer, nullable=False),  # of the run that waits for it; 0: of none
    Column("content", Text, nullable=False),  # JSON of items.AnnotationItem
    Column("gold", String(16)),  # the right choice, where it is known
    Column("labels", Integer, nullable=False, default=0),
    Column("slots", Integer, nullable=False),  # how many more people it may be given to now: neither label nor lease
    Column("state", String(16), nullable=False, default="open"),  # open, conflict, decided; or gold
    Column("outcome", String(16)),
    Column("probability", Float),
    Column("consumed", Integer),  # the step that has taken the decision over
    Index("items_free", "step", "seq", sqlite_where=text("slots > 0"), postgresql_where=text("slots > 0")),
    Index("items_of_step", "step", "state"),
)
leases = Table(
    "leases",
    metadata,
    _person(primary_key=True, autoincrement=False),  # one item at a time
    _item(),
    Column("issued", Float, nullable=False),
    Column("expires", Float, nullable=False),
)
labels = Table(
    "labels",
    metadata,
    Column("id", Integer, primary_key=True),
    _item(),
    _person(),
    Column("choice", String(16), nullable=False),
    Column("swapped", Boolean, nullable=False),  # the item's first response stood on the right
    Column("strength", Integer),
    Column("rationale", Text, nullable=False),
    Column("written", Text, nullable=False),
    Column("seconds", Float),
    Column("guidelines", String(16), nullable=False),  # hash of what the person was to go by
    Column("created", Float, nullable=False),
    Column("review", Boolean, nullable=False),  # a reviewer's word on a conflict
    Column("undone", Float),  # when the person took it back
    Index(
        "labels_once",
        "item",
        "person",
        unique=True,
        sqlite_where=text("undone IS NULL"),
        postgresql_where=text("undone IS NULL"),
    ),
    Index("labels_of_person", "person", "id"),
)
skips = Table(
    "skips",
    metadata,
    Column("session", String(16), ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    _item(primary_key=True),
)
reports = Table(
    "reports",
    metadata,
    Column("id", Integer, primary_key=True),
    _item(),
    _person(),
    Column("reason", Text, nullable=False),
    Column("created", Float, nullable=False),
)

_LOCK = 0x726F6E646F  # any number that others are unlikely to use; a database may hold several applications


@dataclass(frozen=True, slots=True)
class Database:
    """``writer`` begins transactions that exclude each other; ``reader`` sees the last committed state."""

    writer: Engine
    reader: Engine

    def dispose(self) -> None:
        self.writer.dispose()
        self.reader.dispose()


def open_database(url: str, create: bool = True) -> Database:
    """Connect to a database URL and make the tables that are missing; raises AnnotationError naming the URL.

    A password in the URL never stands in a message.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise AnnotationError(
            f"store: {url!r} is no database URL; give sqlite:///FILE or postgresql+psycopg://..."
        ) from None
    shown = parsed.render_as_string(hide_password=True)
    backend = parsed.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise AnnotationError(f"store = {shown}: {backend} is not supported; use SQLite or PostgreSQL")
    if backend == "sqlite":
        path = Path(parsed.database or "")
        if not parsed.database or parsed.database == ":memory:":
            raise AnnotationError(f"store = {shown}: labels in memory would not survive; name a file")
        if not create and not path.is_file():
            raise AnnotationError(f"store = {shown}: there is no such file")
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Readers get a snapshot: several statements of an export or of the agreement page see one state.
        isolation = {"isolation_level": "REPEATABLE READ"} if backend == "postgresql" else {}
        # Parameters are people's words: they belong in no error message or log.
        database = Database(
            create_engine(parsed, hide_parameters=True), create_engine(parsed, hide_parameters=True, **isolation)
        )
        _prepare(database, backend)
        metadata.create_all(database.writer)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise AnnotationError(f"store = {shown}: {error}; install the extra: pip install 'rondo[postgres]'") from None
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or error).strip()
        raise AnnotationError(f"store = {shown}: {cause}") from None
    return database


def _prepare(database: Database, backend: str) -> None:
    if backend == "postgresql":

        @event.listens_for(database.writer, "begin")
        def _lock(connection: Any) -> None:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")

        return
    for engine, begin in ((database.writer, "BEGIN IMMEDIATE"), (database.reader, "BEGIN")):

        @event.listens_for(engine, "connect")
        def _pragmas(connection: Any, _: Any) -> None:
            connection.isolation_level = None  # transactions begin below, not where the driver guesses
            for pragma in (
                "busy_timeout = 60000",
                "journal_mode = WAL",
                "synchronous = FULL",  # a commit returns after fsync: acknowledged means on the disk
                "foreign_keys = ON",
                "secure_delete = ON",  # what is erased is overwritten
            ):
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def _begin(connection: Any, begin: str = begin) -> None:
            connection.exec_driver_sql(begin)
