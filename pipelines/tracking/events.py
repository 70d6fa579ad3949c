"""What a run measured, journaled in its own directory: the report reads it, MLflow is sent it.

    run directory
      tracking/events.jsonl     one event a line, as in the ledger's journals
      tracking/delivered.json   how far MLflow has got it (``outbox``)

An event has a key, and one whose key is known is not written again: a step that is trained anew after a rollback, or
told anew after a crash, is measured once. Nothing here knows MLflow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from pipelines.ledger.journal import Journal, decode_line
from preference import reports
from preference.reports import PromptScores, StageTime
from preference.types import Judgement, Message, content_id

EVENTS = Path("tracking") / "events.jsonl"


@dataclass(frozen=True, slots=True)
class Began:
    """An attempt at the run; ``tags`` say where and with what it runs."""

    attempt: int
    at_ms: int
    tags: dict[str, str]
    event: Literal["began"] = "began"

    @property
    def key(self) -> str:
        return f"attempt {self.attempt}"


@dataclass(frozen=True, slots=True)
class Tagged:
    """Something about the attempt that was not known when it began."""

    attempt: int
    tags: dict[str, str]
    event: Literal["tagged"] = "tagged"

    @property
    def key(self) -> str:
        return f"tags of attempt {self.attempt}: {content_id(self.tags)}"


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that the run reads, or made."""

    name: str
    path: str
    digest: str
    """First 16 hex digits of the content's SHA-256."""
    rows: int | None
    context: str
    """What it is for: training, heldout, pairs."""


@dataclass(frozen=True, slots=True)
class Read:
    """Data sets that went into the run."""

    files: tuple[DataFile, ...]
    event: Literal["read"] = "read"

    @property
    def key(self) -> str:
        return f"data {content_id([(f.name, f.digest, f.context) for f in self.files])}"


@dataclass(frozen=True, slots=True)
class Stepped:
    """One iteration."""

    step: int
    at_ms: int
    version: str
    metrics: dict[str, float]
    stages: tuple[StageTime, ...]
    ages: dict[int, int]
    """Trained items by their age in versions."""
    judges: dict[str, str]
    """Definition hash by name of everybody who judged."""
    event: Literal["stepped"] = "stepped"

    @property
    def key(self) -> str:
        return f"step {self.step}"


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation on held-out prompts."""

    step: int
    at_ms: int
    version: str
    metrics: dict[str, float]
    judges: tuple[reports.Judged, ...]
    heldout: str
    """Hash of the prompts' ids: evaluations with the same one can be compared prompt by prompt."""
    prompts: tuple[PromptScores, ...]
    event: Literal["evaluated"] = "evaluated"

    @property
    def key(self) -> str:
        return f"evaluation at step {self.step}"


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """Loss and rewards on held-out items (training from files)."""

    step: int
    at_ms: int
    metrics: dict[str, float]
    event: Literal["heldout"] = "heldout"

    @property
    def key(self) -> str:
        return f"held-out loss at step {self.step}"


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts, ready to be read as MLflow's tables are: ``{"columns": [...], "data": [[...]]}``."""

    path: str
    json: str
    event: Literal["table"] = "table"

    @property
    def key(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class Answer:
    """A response as the judges saw it."""

    id: str
    text: str
    tokens: int
    origin: str
    """Version of the policy that sampled it, or who else wrote it."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A prompt with its responses and what was said of them. A later event of the same group adds to it."""

    step: int
    asked_step: int
    """The step that sampled it: an earlier one where people answered late."""
    asked_ms: int
    at_ms: int
    group: str
    """Id of its first response: a prompt may come again."""
    prompt_id: str
    messages: tuple[Message, ...]
    answers: tuple[Answer, ...]
    judgements: tuple[Judgement, ...]
    overruled: tuple[Judgement, ...]
    waiting: bool
    """People had been asked and had not decided."""
    sources: dict[str, str]
    """What each judge is to MLflow: CODE, LLM_JUDGE or HUMAN."""
    event: Literal["judged"] = "judged"

    @property
    def key(self) -> str:
        return f"judgements of {self.group} at step {self.step}"


@dataclass(frozen=True, slots=True)
class Exported:
    """A Hugging Face directory that goes into the model registry, with where it comes from."""

    directory: str
    name: str
    step: int
    tags: dict[str, str]
    event: Literal["exported"] = "exported"

    @property
    def key(self) -> str:
        return f"model of step {self.step}"


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of an attempt: FINISHED, FAILED or KILLED."""

    attempt: int
    at_ms: int
    status: str
    event: Literal["ended"] = "ended"

    @property
    def key(self) -> str:
        return f"end of attempt {self.attempt}"


Event = Began | Tagged | Read | Stepped | Evaluated | HeldOutLoss | Table | Judged | Exported | Ended
_event: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


class EventLog:
    """The journal of a run that is under way; only the process that holds the run's lock opens it."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / EVENTS
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(self.path)
        self._keys = {event.key for event in read_events(run_dir)}

    def append(self, *events: Event) -> bool:
        """Write them down for good, but for those whose key is there already; whether any was new."""
        fresh = False
        for event in events:
            if event.key not in self._keys:
                self._journal.append(_event.dump_python(event))
                self._keys.add(event.key)
                fresh = True
        self._journal.commit()
        return fresh

    def close(self) -> None:
        self._journal.close()


def read_events(run_dir: Path, warn: Callable[[str], None] | None = None) -> Iterator[Event]:
    """The events of a run in order, also of one that is under way; none where it has none.

    What is torn, damaged or of another version of Rondo is left out, and ``warn`` is told where.
    """
    path = run_dir / EVENTS
    if not path.exists():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            event = parse(line)
            if event is not None:
                yield event
            elif warn is not None and line.endswith(b"\n"):
                warn(f"{path}:{number}: not an event that this version of Rondo knows; left out")


def parse(line: bytes) -> Event | None:
    """An event from a line of the journal; None where it is none."""
    record: dict[str, Any] | None = decode_line(line) if line.endswith(b"\n") else None
    try:
        return None if record is None else _event.validate_python(record)
    except ValidationError:
        return None


def clean(text: str) -> str:
    """What every database and every encoding takes: no NUL, no half of a surrogate pair."""
    return text.encode(errors="replace").decode().replace("\0", "\ufffd")
