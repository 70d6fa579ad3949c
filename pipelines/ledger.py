"""The durable ledger of a run: append-only journals, the lock on the run directory, and where to go on from.

    run directory
      run.json         configuration hash and fields, MLflow run, attempts
      ledger/*.jsonl   one journal a stage; a line is "<crc32> <json>", keyed by content id
      checkpoints/step-000008/complete.json   written last: without it there is no checkpoint
      logs/ model/

``resume`` continues from here and nowhere else: load the newest complete checkpoint, replay the journaled steps after
it, then sample anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from pipelines.judged import Recorded, candidate_records, judgement_record, read_groups, response_type, undecided
from preference.types import CandidateGroup, JudgedGroup, Prompt, Response

SCHEMA = 1
Scores = tuple[np.ndarray[Any, np.dtype[np.float32]], ...]  # one array a response


class LedgerError(RuntimeError):
    """The run directory is locked, damaged or belongs to another configuration."""


class Journal:
    """An append-only file of records. A torn last line (the process died writing it) is cut off on opening."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.cut_bytes = 0
        self._truncate_torn_tail()
        self._file: IO[bytes] = path.open("ab")

    def append(self, record: Mapping[str, Any]) -> None:
        body = json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode()
        self._file.write(b"%08x %s\n" % (zlib.crc32(body), body))

    def flush(self) -> None:
        """Everything appended so far survives the death of this process."""
        self._file.flush()

    def commit(self) -> None:
        """Everything appended so far survives a power cut from here on."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._file.flush()
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                record = decode_line(line)
                if record is None:
                    raise LedgerError(f"{self._path}:{number}: damaged record (checksum mismatch)")
                yield record

    def close(self) -> None:
        self.commit()
        self._file.close()

    def _truncate_torn_tail(self) -> None:
        if not self._path.exists():
            return
        data = self._path.read_bytes()
        end = len(data)
        if data and not data.endswith(b"\n"):
            end = data.rfind(b"\n") + 1
        self.cut_bytes = len(data) - end
        if self.cut_bytes:
            os.truncate(self._path, end)


def decode_line(line: bytes) -> dict[str, Any] | None:
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(body):
            return None
        record: dict[str, Any] = json.loads(body)
    except ValueError:
        return None
    return record


@dataclass(frozen=True, slots=True)
class RunRecord:
    """``run.json``: what the run is, so that a later attempt can tell whether it may go on with it."""

    config_hash: str
    fields: dict[str, str]
    mlflow_run: str
    attempts: int
    logged_step: int  # last step that reached MLflow
    finished: int = 0  # steps after which the run came to its end and was exported; 0: it has not
    schema: int = SCHEMA


class Ledger:
    """Open journals of one run directory, held under an exclusive lock."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        (run_dir / "ledger").mkdir(parents=True, exist_ok=True)
        (run_dir / "logs").mkdir(exist_ok=True)
        self._lock = _lock(run_dir / "lock")
        self._journals = {
            name: Journal(run_dir / "ledger" / f"{name}.jsonl")
            for name in ("candidates", "judgements", "scores", "steps", "evals")
        }
        self._waited = Counter(g.step for g in self._groups() if g.waiting)
        self._scores: dict[tuple[str, str], Scores] = {
            (r["reference"], r["item"]): tuple(np.array(a, np.float32) for a in r["scores"])
            for r in self._journals["scores"]
        }

    # -- what stages leave behind ---------------------------------------------------------------------------------

    def judged(self, step: int, groups: Sequence[JudgedGroup]) -> None:
        """Journal candidates and judgements of ``step`` as they arrive."""
        self._write_groups(step, groups, "decided")

    def waiting(self, step: int, groups: Sequence[JudgedGroup]) -> None:
        """Journal what people have been asked about in ``step`` and have not decided: a later step will."""
        self._write_groups(step, groups, "waiting")
        self._waited[step] += len(groups)

    def _write_groups(self, step: int, groups: Sequence[JudgedGroup], state: Literal["decided", "waiting"]) -> None:
        for g in groups:
            for record in candidate_records(step, g):
                self._journals["candidates"].append(record)
            self._journals["judgements"].append(judgement_record(step, g, state))

    def scored(self, reference: str, key: str, scores: Scores) -> None:
        """Journal an item's log-probs by the ``reference`` of that version as soon as they are there."""
        self._journals["scores"].append({"reference": reference, "item": key, "scores": [a.tolist() for a in scores]})
        self._journals["scores"].flush()
        self._scores[reference, key] = scores

    def prepared(self, step: int, items: Sequence[str]) -> None:
        """Mark the step's data complete, its items by id: it can be replayed from here on."""
        for name in ("candidates", "judgements", "scores"):
            self._journals[name].commit()
        self._journals["steps"].append({"step": step, "event": "prepared", "pairs": list(items)})
        self._journals["steps"].commit()

    def trained(self, step: int, version: str, loss: float | None) -> None:
        self._journals["steps"].append({"step": step, "event": "trained", "version": version, "loss": loss})
        self._journals["steps"].commit()

    def evaluated(self, step: int, groups: Sequence[CandidateGroup]) -> None:
        for g in groups:
            for c in g.candidates:
                self._journals["evals"].append({"step": step, **response_type.dump_python(c, mode="json")})
        self._journals["evals"].commit()

    # -- what a later attempt finds ------------------------------------------------------------------------------

    def replayable(self, prompts: Mapping[str, Prompt]) -> dict[int, tuple[JudgedGroup, ...]]:
        """The judged candidates of the steps whose data is complete, by step number."""
        found: dict[int, list[JudgedGroup]] = {step: [] for step in sorted(self.prepared_steps())}
        for g in self._groups():
            if g.step in found and not g.waiting and g.prompt_id in prompts:
                found[g.step].append(g.judged(prompts[g.prompt_id]))
        return {step: tuple(groups) for step, groups in found.items()}

    def undecided(self, prompts: Mapping[str, Prompt]) -> list[tuple[int, JudgedGroup]]:
        """What people were asked about in a complete step and no complete step has decided since."""
        still = undecided(self._groups(), self.prepared_steps(), prompts)
        return [(g.step, g.judged(prompts[g.prompt_id])) for g in still]

    def waited(self, step: int) -> int:
        """How many groups of ``step`` went on waiting for people when the step went on."""
        return self._waited[step]

    def _groups(self) -> list[Recorded]:
        return read_groups(self._journals["candidates"], self._journals["judgements"])

    def prepared_steps(self) -> set[int]:
        """The steps whose data is complete."""
        return {r["step"] for r in self._journals["steps"] if r["event"] == "prepared"}

    def scores(self, reference: str, key: str) -> Scores | None:
        """An item's journaled log-probs by that version of the reference, of this attempt or an earlier one."""
        return self._scores.get((reference, key))

    def evaluation(self, step: int, prompts: Mapping[str, Prompt]) -> list[CandidateGroup]:
        """Journaled held-out answers of ``step``; empty where there are none."""
        found: dict[str, Response] = {}
        for r in self._journals["evals"]:
            if r.pop("step") == step:
                c = response_type.validate_python(r)
                found[c.prompt_id] = c
        return [CandidateGroup(prompts[i], (c,)) for i, c in found.items() if i in prompts]

    @property
    def cut_bytes(self) -> int:
        """Bytes of torn records cut off on opening."""
        return sum(j.cut_bytes for j in self._journals.values())

    def close(self) -> None:
        for journal in self._journals.values():
            journal.close()
        self._lock.close()


def read_record(run_dir: Path) -> RunRecord | None:
    path = run_dir / "run.json"
    if not path.exists():
        return None
    try:
        return RunRecord(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise LedgerError(f"{path} is damaged: {error}") from None


def write_record(run_dir: Path, record: RunRecord) -> None:
    partial = run_dir / "run.json.partial"
    partial.write_text(json.dumps({f: getattr(record, f) for f in record.__dataclass_fields__}, indent=1))
    os.replace(partial, run_dir / "run.json")


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:06d}"


def complete_checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, directory) of the checkpoints marked complete, oldest first."""
    marks = sorted((run_dir / "checkpoints").glob("step-*/complete.json"))
    return [(int(json.loads(m.read_text())["step"]), m.parent) for m in marks]


def prune_checkpoints(run_dir: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` complete checkpoints, and what was never completed before them."""
    complete = complete_checkpoints(run_dir)
    kept = {path for _, path in complete[-keep:]}
    for path in (run_dir / "checkpoints").glob("step-*"):
        if path not in kept and complete and path.name < complete[-1][1].name:
            shutil.rmtree(path)


def _lock(path: Path) -> IO[str]:
    """Exclusive lock on a run directory, held until the returned file is closed or the process dies."""
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        raise LedgerError(f"{path.parent} is in use by {owner}; two runs never share a directory") from None
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file
