"""Every line of every journal: whole, and a record of its kind. What is not is a breach, and left out from there on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, FiniteFloat, PositiveInt, TypeAdapter, ValidationError

from pipelines.ledger.audit.findings import Findings
from pipelines.ledger.events import Event, read_event
from pipelines.ledger.journal import decode
from pipelines.ledger.judged import response_type
from pipelines.ledger.migrate import upgraded
from preference.types import Judgement, Response

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Line(Generic[R]):
    place: str
    record: R


@dataclass(frozen=True, slots=True)
class Sampled:
    """A line of candidates.jsonl."""

    step: int
    group: str
    response: Response


@dataclass(frozen=True, slots=True)
class JudgedLine:
    """A line of judgements.jsonl."""

    step: PositiveInt
    group: str
    state: Literal["decided", "waiting"]
    prompt_id: str
    judgements: tuple[Judgement, ...]
    overruled: tuple[Judgement, ...]


@dataclass(frozen=True, slots=True)
class ScoreLine:
    """A line of scores.jsonl: an item's log-probs, one array a response, by a version of the reference."""

    reference: str
    item: str
    scores: Annotated[tuple[tuple[FiniteFloat, ...], ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Journals:
    """What a run has recorded, as far as it can be read."""

    steps: Sequence[Line[Event]]
    candidates: Sequence[Line[Sampled]]
    judgements: Sequence[Line[JudgedLine]]
    scores: Sequence[Line[ScoreLine]]


_judged_line: TypeAdapter[JudgedLine] = TypeAdapter(JudgedLine)
_score_line: TypeAdapter[ScoreLine] = TypeAdapter(ScoreLine)
_positive: TypeAdapter[int] = TypeAdapter(PositiveInt)


def _sampled(record: dict[str, Any]) -> Sampled:
    response = response_type.validate_python({k: v for k, v in record.items() if k not in ("step", "group")})
    return Sampled(_positive.validate_python(record.get("step")), str(record.get("group", "")), response)


def _evaluated(record: dict[str, Any]) -> Response:
    return response_type.validate_python({k: v for k, v in record.items() if k != "step"})


def read_journals(run_dir: Path, schema: int, found: Findings) -> Journals:
    """All journals of a run; the steps first, so that of a running run whatever they speak of is there."""
    ledger = run_dir / "ledger"
    steps = _lines(ledger / "steps.jsonl", schema, read_event, found)
    journals = Journals(
        steps,
        _lines(ledger / "candidates.jsonl", schema, _sampled, found),
        _lines(ledger / "judgements.jsonl", schema, _judged_line.validate_python, found),
        _lines(ledger / "scores.jsonl", schema, _score_line.validate_python, found),
    )
    _lines(ledger / "evals.jsonl", schema, _evaluated, found)
    return journals


def _lines(path: Path, schema: int, parse: Callable[[dict[str, Any]], R], found: Findings) -> list[Line[R]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        found.breach(str(path), f"the journal cannot be read: {error.strerror or error}")
        return []
    lines = data.split(b"\n")
    if lines[-1]:
        found.notes.append(f"{path}:{len(lines)}: {len(lines[-1])} bytes of a record whose writing was broken off")
    whole: list[Line[R]] = []
    place = str(path)  # of the record that a migration, if there is one, is about to read

    def records() -> Iterator[dict[str, Any]]:
        nonlocal place
        highest = 0
        for number, line in enumerate(lines[:-1], start=1):
            place = f"{path}:{number}"
            decoded = decode(line)
            if decoded is None:
                found.breach(place, "damaged record (checksum mismatch)")
                continue
            token, record = decoded
            if token < highest:
                found.notes.append(f"{place}: written by an owner that had lost the run; it does not count")
                continue
            highest = token
            yield record

    try:
        for record in upgraded(records(), path.stem, schema):
            try:
                whole.append(Line(place, parse(record)))
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"])) or "record"
                found.breach(place, f"no record of this journal: {field}: {first['msg']}")
    except (KeyError, TypeError, ValueError) as error:  # a migration met what it does not know
        found.breach(place, f"no record of schema {schema}: {type(error).__name__} {error}")
    found.counted[path.stem] += len(whole)
    return whole
