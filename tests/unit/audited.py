"""A run directory as two attempts of the real loop leave it, and what can be done to one."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from configs.loading import scientific
from pipelines.ledger.events import AttemptBegan, Began
from pipelines.ledger.journal import encode_line, read_lines
from pipelines.ledger.record import RunRecord, write_record
from preference.types import Version
from tests.unit.test_loop import World, config

Records = list[dict[str, Any]]
STEPS = 3
SIZE = {"prompts_per_step": 4, "candidates": 2}  # three steps are an epoch of the world's twelve prompts


def audited_run(directory: Path) -> Path:
    """Three steps; the process was killed after the third, whose checkpoint is of the second, and another went on."""
    cfg = config(steps=STEPS, sampling=SIZE, checkpoint={"every": 2, "keep": 9})
    directory.mkdir(parents=True, exist_ok=True)
    database = directory.parent / "mlflow.db"
    first = World(directory, cfg)
    first.ledger.record(AttemptBegan(1, "process 1 on here", time.time()))
    first.ledger.record(Began(0, 0, STEPS, str(database), time.time()))
    first.run()
    second = World(directory, cfg, version=Version(1, 2))
    second.ledger.record(AttemptBegan(2, "process 2 on here", time.time()))
    second.ledger.record(Began(1, 2, STEPS, str(database), time.time()))
    second.run(done=2)
    write_record(directory, RunRecord("hash", scientific(cfg), "run-1", 2, STEPS))
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("CREATE TABLE runs (run_uuid TEXT)")
        db.execute("CREATE TABLE metrics (run_uuid TEXT, key TEXT, step INTEGER, value REAL)")
        db.execute("INSERT INTO runs VALUES ('run-1')")
        db.executemany(
            "INSERT INTO metrics VALUES ('run-1', 'time/iteration', ?, 1.0)", [(s,) for s in range(1, STEPS + 1)]
        )
    return directory


def rewrite(run: Path, journal: str, change: Callable[[Records], object]) -> None:
    """Let ``change`` edit a journal's records, or return others; they get right checksums."""
    path = run / "ledger" / f"{journal}.jsonl"
    lines = list(read_lines(path))
    records = [line.record for line in lines]
    changed = change(records)
    token = max((line.token for line in lines), default=0)
    kept = changed if isinstance(changed, list) and all(isinstance(r, dict) for r in changed) else records
    path.write_bytes(b"".join(encode_line(r, token) for r in kept))


def edit_record(run: Path, **fields: Any) -> None:
    path = run / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
