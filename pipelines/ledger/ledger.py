"""The durable ledger of a run: append-only journals of what every stage made, and where to go on from.

    run directory
      run.json         configuration hash and fields, MLflow run, attempts     pipelines.ledger.record
      lock owners/     who works on it, and who did                            pipelines.ledger.lock
      ledger/*.jsonl   one journal a stage, keyed by content id                pipelines.ledger.journal
      checkpoints/     complete ones are marked by a manifest of checksums     pipelines.ledger.checkpoints
      logs/ model/

``resume`` continues from here and nowhere else: load the newest whole checkpoint, replay the journaled steps after it,
then sample anew.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from pipelines.ledger.checkpoints import Checkpoints, checkpoint_dir, complete_checkpoints
from pipelines.ledger.events import Event, PreparedStep, TrainedStep, event_record, read_event
from pipelines.ledger.journal import Journal, LedgerError, decode_line, encode_line, read_lines, saving
from pipelines.ledger.judged import Recorded, candidate_records, judgement_record, read_groups, response_type, undecided
from pipelines.ledger.lock import RunLock
from pipelines.ledger.migrate import SCHEMA, migrate
from pipelines.ledger.record import RunRecord, read_record, schema_of, write_record
from preference.types import CandidateGroup, Fate, JudgedGroup, Prompt, Response

__all__ = [
    "SCHEMA", "Begun", "Journal", "Ledger", "LedgerError", "RunRecord", "Scores", "checkpoint_dir",
    "complete_checkpoints", "decode_line", "read_record", "schema_of", "write_record",
]  # fmt: skip

Scores = tuple[np.ndarray[Any, np.dtype[np.float32]], ...]  # one array a response
JOURNALS = ("candidates", "judgements", "scores", "evals", "steps")
"""In the order in which they may be copied: what the last one speaks of is in the others."""


@dataclass(frozen=True, slots=True)
class Begun:
    """What is known of prompts beyond the steps whose data is complete; groups go by their first candidate's id."""

    decided: Mapping[str, JudgedGroup]
    """Judged, and in no step yet."""
    asked: frozenset[str]
    """People are being asked about these."""
    used: frozenset[str]
    """Of a complete step, or dropped for their age."""
    late: Mapping[int, tuple[JudgedGroup, ...]]
    """What people decided in a step that is not complete, about prompts of complete ones."""


class Ledger:
    """Open journals and checkpoints of one run directory, of which this process becomes the one owner."""

    def __init__(
        self, run_dir: Path, attempt: int = 0, lease_s: float = 30.0, say: Callable[[str], None] = lambda _: None
    ) -> None:
        """Raises LedgerError where another process works on the run, or the directory cannot be written.

        An owner on another machine that has been silent for ``lease_s`` seconds counts as dead; ``say`` tells of it.
        """
        self.run_dir = run_dir
        self.on_commit: Callable[[], None] = lambda: None
        """Called when a step has been committed: there is something new to copy."""
        self.lock = RunLock(run_dir, attempt, lease_s, say)
        with ExitStack() as opened:  # nothing stays locked where the rest fails
            opened.callback(self.lock.close)
            self._open(run_dir)
            opened.pop_all()

    def _open(self, run_dir: Path) -> None:
        token, check = self.lock.token, self.lock.check
        with saving("the ledger", run_dir):
            (run_dir / "ledger").mkdir(exist_ok=True)
            (run_dir / "logs").mkdir(exist_ok=True)
            if (schema := schema_of(run_dir)) < SCHEMA:
                old = lambda path: (line.record for line in read_lines(path))  # noqa: E731
                migrate(run_dir, schema, old, lambda record: encode_line(record, token))
        self._journals = {name: Journal(run_dir / "ledger" / f"{name}.jsonl", token, check) for name in JOURNALS}
        self.checkpoints = Checkpoints(run_dir, token, check)
        complete = self._prepared()
        self._waited = Counter(g.step for g in self._groups() if g.waiting and g.step in complete)
        self._stale = Counter({step: len(event.stale) for step, event in complete.items()})
        with _understood(run_dir, "scores"):
            self._scores: dict[tuple[str, str], Scores] = {
                (r["reference"], r["item"]): tuple(np.array(a, np.float32) for a in r["scores"])
                for r in self._journals["scores"]
            }

    # -- what stages leave behind ---------------------------------------------------------------------------------

    def judged(self, step: int, group: JudgedGroup) -> None:
        """Journal a group as soon as it is decided: what was paid for survives the death of this process."""
        self._write_group(step, group, "decided")

    def asked(self, step: int, group: JudgedGroup) -> None:
        """Journal a group that people have been asked about, with what is known of it by now."""
        self._write_group(step, group, "waiting")

    def waiting(self, step: int, groups: Sequence[JudgedGroup]) -> None:
        """What people have not decided when ``step`` goes on without it: a later step will have it."""
        for group in groups:
            self._write_group(step, group, "waiting")
        self._waited[step] += len(groups)

    def _write_group(self, step: int, group: JudgedGroup, state: Literal["decided", "waiting"]) -> None:
        for record in candidate_records(step, group):
            self._journals["candidates"].append(record)
        self._journals["candidates"].flush()
        self._journals["judgements"].append(judgement_record(step, group, state))
        self._journals["judgements"].flush()

    def scored(self, reference: str, key: str, scores: Scores) -> None:
        """Journal an item's log-probs by the ``reference`` of that version as soon as they are there."""
        self._journals["scores"].append({"reference": reference, "item": key, "scores": [a.tolist() for a in scores]})
        self._journals["scores"].flush()
        self._scores[reference, key] = scores

    def prepared(
        self,
        step: int,
        items: Sequence[str],
        fates: Mapping[Fate, int] | None = None,
        groups: Sequence[str] | None = None,
        stale: Sequence[str] = (),
    ) -> None:
        """Mark the step's data complete, its items by id and what they are made of: it is replayed from here on."""
        for name in ("candidates", "judgements", "scores"):
            self._journals[name].commit()
        counts = None if fates is None else dict(fates)
        made_of = None if groups is None else tuple(groups)
        self._stale[step] = len(stale)
        self.record(PreparedStep(step, tuple(items), counts, time.time(), made_of, tuple(stale)))

    def trained(self, step: int, version: str, loss: float | None) -> None:
        self.record(TrainedStep(step, version, loss, time.time()))

    def record(self, event: Event) -> None:
        """Journal what the run did; it survives a power cut from here on."""
        self._journals["steps"].append(event_record(event))
        self._journals["steps"].commit()
        self.on_commit()

    def evaluated(self, step: int, groups: Sequence[CandidateGroup]) -> None:
        for g in groups:
            for c in g.candidates:
                self._journals["evals"].append({"step": step, **response_type.dump_python(c, mode="json")})
        self._journals["evals"].commit()

    # -- what a later attempt finds ------------------------------------------------------------------------------

    def replayable(self, prompts: Mapping[str, Prompt]) -> dict[int, tuple[JudgedGroup, ...]]:
        """The judged candidates of the steps whose data is complete, by step number, in the order of the step."""
        steps = self._prepared()
        groups = [g for g in self._groups() if not g.waiting and g.prompt_id in prompts]
        by_name = {g.name: g for g in groups}
        found: dict[int, tuple[JudgedGroup, ...]] = {}
        for step, event in sorted(steps.items()):
            own = [g for g in groups if g.step == step]
            if event.groups is not None:
                own = [by_name[name] for name in event.groups if name in by_name]
            found[step] = tuple(g.judged(prompts[g.prompt_id]) for g in own)
        return found

    def begun(self, prompts: Mapping[str, Prompt]) -> Begun:
        """What was sampled and judged, and is in no step whose data is complete."""
        steps = self._prepared()
        made_of = {name for event in steps.values() for name in (*(event.groups or ()), *event.stale)}
        groups = [g for g in self._groups() if g.prompt_id in prompts]
        made_of |= {g.name for g in groups if not g.waiting and (e := steps.get(g.step)) and e.groups is None}
        # People may still be asked about some of a complete step's prompts: their places in it are taken.
        taken = {g.name for g in groups if g.waiting and g.step in steps}
        decided: dict[str, JudgedGroup] = {}
        late: dict[int, list[JudgedGroup]] = {}
        for g in groups:
            if g.waiting or g.name in made_of:
                continue
            if g.name in taken:
                late.setdefault(g.step, []).append(g.judged(prompts[g.prompt_id]))
            else:
                decided[g.name] = g.judged(prompts[g.prompt_id])
        used = frozenset(made_of | taken)
        asked = frozenset(g.name for g in groups if g.waiting and g.name not in used) - decided.keys()
        return Begun(decided, asked, used, {step: tuple(found) for step, found in late.items()})

    def undecided(self, prompts: Mapping[str, Prompt]) -> list[tuple[int, JudgedGroup]]:
        """What people were asked about and no step has decided since."""
        return [(g.step, g.judged(prompts[g.prompt_id])) for g in undecided(self._groups(), prompts)]

    def waited(self, step: int) -> int:
        """How many groups of ``step`` went on waiting for people when the step went on."""
        return self._waited[step]

    def stale(self, step: int) -> int:
        """How many prompts ``step``, whose data is complete, dropped for their age."""
        return self._stale[step]

    def _groups(self) -> list[Recorded]:
        with _understood(self.run_dir, "judgements"):
            return read_groups(self._journals["candidates"], self._journals["judgements"])

    def prepared_steps(self) -> set[int]:
        """The steps whose data is complete."""
        return set(self._prepared())

    def _prepared(self) -> dict[int, PreparedStep]:
        with _understood(self.run_dir, "steps"):
            events = (read_event(r) for r in self._journals["steps"] if r["event"] == "prepared")
            return {e.step: e for e in events if isinstance(e, PreparedStep)}

    def scores(self, reference: str, key: str) -> Scores | None:
        """An item's journaled log-probs by that version of the reference, of this attempt or an earlier one."""
        return self._scores.get((reference, key))

    def evaluation(self, step: int, prompts: Mapping[str, Prompt]) -> list[CandidateGroup]:
        """Journaled held-out answers of ``step``; empty where there are none."""
        found: dict[str, Response] = {}
        with _understood(self.run_dir, "evals"):
            for r in self._journals["evals"]:
                if r.pop("step") == step:
                    c = response_type.validate_python(r)
                    found[c.prompt_id] = c
        return [CandidateGroup(prompts[i], (c,)) for i, c in found.items() if i in prompts]

    @property
    def cut_bytes(self) -> int:
        """Bytes of torn records cut off on opening."""
        return sum(j.cut_bytes for j in self._journals.values())

    def sizes(self) -> dict[str, int]:
        """Bytes of every journal that are committed, by its name in the order of ``JOURNALS``."""
        last = {JOURNALS[-1]: self._journals[JOURNALS[-1]].committed}  # read first: the others have what it speaks of
        return {name: last.get(name, self._journals[name].committed) for name in JOURNALS}

    def close(self) -> None:
        """Commit what is written, complete the last checkpoint, and give the run directory back."""
        with ExitStack() as closing:  # each of them, whatever becomes of the others
            closing.callback(self.lock.close)
            closing.callback(self.checkpoints.close)
            for journal in self._journals.values():
                closing.callback(journal.close)


@contextmanager
def _understood(run_dir: Path, journal: str) -> Iterator[None]:
    """Raise LedgerError for whole records that this Rondo has not written, or not so."""
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else f"{type(error).__name__} {error}"
        raise LedgerError(
            f"{run_dir / 'ledger'}: {journal} hold a record of another version of Rondo, or a damaged one: {why}; "
            f"`rondo verify {run_dir}` names its line"
        ) from None
