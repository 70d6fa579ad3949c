"""Versions of the ledger's format: newer ones are refused, older ones are read as if they were of today.

    schema 1   steps: prepared, trained                                       (no times, no attempts)
    schema 2   steps: attempt, began, prepared with fates, trained, fault, ended; all with times

Whoever only reads a run (``upgraded``) changes nothing on the disk; whoever goes on with it (``migrate``, under the
run's lock) rewrites the journals first and marks them in ``run.json`` last. Power may fail in between, so a migration
leaves what it has made unchanged. What was there before stays beside it until ``rondo gc``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from preference.types import Version

SCHEMA = 2
Record = dict[str, Any]
Change = Callable[[Iterable[Record]], Iterator[Record]]
BACKUP = ".schema-"
"""Between a journal's name and the schema that it had before it was migrated."""


def _steps_of_2(records: Iterable[Record]) -> Iterator[Record]:
    """Attempts and times were not recorded; where the weights were set back shows in their versions."""
    incarnation: int | None = None
    for record in records:
        if record["event"] == "began":
            incarnation = record["incarnation"]
        elif record["event"] == "trained":
            now = Version.parse(record["version"]).incarnation
            if incarnation is None or now > incarnation:
                yield _began(now, record["step"] - 1)
            incarnation = now
            record = {"time": None, **record}
        elif record["event"] == "prepared":
            if incarnation is None:
                yield _began(0, 0)
                incarnation = 0
            record = {"fates": None, "time": None, **record}
        yield record


def _began(incarnation: int, done: int) -> Record:
    return {
        "incarnation": incarnation, "done": done, "steps": 0, "tracking": "", "time": None, "event": "began",
    }  # fmt: skip


MIGRATIONS: Mapping[int, Mapping[str, Change]] = {1: {"steps": _steps_of_2}}
"""From the schema before: what becomes of which journal."""


def known_schema(record: object) -> int:
    """The schema of the ledger whose ``run.json`` holds ``record``; raises ValueError on one that is not read here."""
    schema = record.get("schema") if isinstance(record, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise ValueError(f"its schema is {schema!r:.80}, which is no version of the ledger")
    if schema > SCHEMA:
        raise ValueError(
            f"its ledger has schema {schema}, and this Rondo reads schemas up to {SCHEMA}: a newer one wrote it; "
            f"install that, or start another run"
        )
    return schema


def upgraded(records: Iterable[Record], journal: str, schema: int) -> Iterable[Record]:
    """The records of a journal of ``schema`` as today's would have them."""
    for version in range(schema, SCHEMA):
        if journal in MIGRATIONS[version]:
            records = MIGRATIONS[version][journal](records)
    return records


def migrate(
    run_dir: Path, schema: int, read: Callable[[Path], Iterable[Record]], encode: Callable[[Record], bytes]
) -> None:
    """Rewrite the journals of a run of an older ``schema``; the caller holds the run's lock.

    ``read`` yields the records of a journal, ``encode`` makes a line of one. Raises OSError, and then nothing has
    changed but what another attempt changes alike.
    """
    for journal in sorted({name for version in range(schema, SCHEMA) for name in MIGRATIONS[version]}):
        path = run_dir / "ledger" / f"{journal}.jsonl"
        if not path.exists():
            continue
        backup = path.with_name(f"{path.name}{BACKUP}{schema}")
        if not backup.exists():
            shutil.copy2(path, backup)
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as file:
            for record in upgraded(read(path), journal, schema):
                file.write(encode(record))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    record = json.loads((run_dir / "run.json").read_text())
    partial = run_dir / "run.json.partial"
    partial.write_text(json.dumps({**record, "schema": SCHEMA}, indent=1))
    os.replace(partial, run_dir / "run.json")
