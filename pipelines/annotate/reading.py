"""Files of what people are to judge, or have judged elsewhere -> items, gold items and labels.

A record is one of
  * ``prompt`` with ``response_a`` and ``response_b``, or with ``candidates`` (a list: every two of them are compared,
    or each is judged alone where the mode is labels)
  * any preference, unary label or demonstration that `rondo offline` reads; what it prefers is not shown to anybody
  * what ``exchange`` has exported, labelled in the tool since or not
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from configs.judges import HumanJudge
from pipelines.annotate.items import AnnotationError, AnnotationItem, Answer, Choice, Mode, Shown
from pipelines.annotate.store import Gold
from pipelines.data.annotations import parse_argilla, parse_label_studio
from pipelines.data.containers import records, spans
from pipelines.data.records import (
    Graded,
    Parsed,
    Preference,
    detect,
    filled,
    parse_demonstration,
    parse_label,
    parse_preference,
    read_prompt,
    read_response,
)
from pipelines.data.report import Reason, Unfit
from pipelines.data.rules import AnnotationFields, DataError, DataRules
from preference.types import Message, content_id

T = TypeVar("T")
Record = Mapping[str, Any]
RESPONSES = ("response_a", "response_b")  # fields of an item's first and second response in every format
QUESTION: Mapping[Mode, str] = {"pairs": "preference", "labels": "verdict"}
_RULES = DataRules()
_NAMED: Mapping[Mode, DataRules] = {
    "pairs": DataRules(annotation=AnnotationFields(prompt="prompt", responses=RESPONSES, question=QUESTION["pairs"])),
    "labels": DataRules(annotation=AnnotationFields(prompt="prompt", responses=("response",))),
}


@dataclass(frozen=True, slots=True)
class ReadLabel:
    """Somebody's answer in a file."""

    annotator: str
    answer: Answer
    swapped: bool = False
    seconds: float | None = None
    review: bool = False


@dataclass(frozen=True, slots=True)
class ReadItem:
    """An item in a file. ``id`` is the record's own: of the store that it was exported from, or of anything."""

    id: str
    item: AnnotationItem
    labels: tuple[ReadLabel, ...] = ()


def read_items(path: Path, mode: Mode | None = None) -> list[ReadItem]:
    """The items of a file, in order; of ``mode``, or of the mode that the first record tells of.

    Raises AnnotationError naming file, place and what is missing.
    """
    found: list[ReadItem] = []
    for place, record in _records(path):
        try:
            new = list(_read(filled(record), mode))
        except Unfit as unfit:
            raise AnnotationError(f"{place}: {unfit.reason.value}: {unfit.detail or 'the record is no item'}") from None
        except ValueError as error:
            raise AnnotationError(f"{place}: {error}") from None
        for read in new:
            mode = mode or read.item.mode
            if read.item.mode != mode:
                raise AnnotationError(f"{place}: the record is for mode {read.item.mode}, the others for mode {mode}")
        found += new
    if not found:
        raise AnnotationError(f"{path} holds no items")
    return found


def read_gold(judge: HumanJudge) -> list[Gold]:
    """The items with known answers that ``judge.gold`` names, none where it is empty.

    They are preferences or unary labels, or ``response_a``, ``response_b`` and ``answer`` (a, b, tie or both_bad).
    Raises AnnotationError, also where the qualification round asks for more of them than there are.
    """
    found = []
    for place, record in _records(Path(judge.gold)) if judge.gold else ():
        try:
            gold = _gold(filled(record))
        except (Unfit, ValueError) as error:
            raise AnnotationError(f"{place}: {error or 'the record is no gold item'}") from None
        if gold.item.mode != judge.mode:
            raise AnnotationError(f"{place}: a gold item of mode {gold.item.mode}, but mode = {judge.mode}")
        found.append(gold)
    if judge.qualification > len(found):
        raise AnnotationError(
            f"qualification = {judge.qualification}, but gold = {judge.gold or 'empty'} has {len(found)} items: nobody "
            f"could pass; name a file of that many, or lower qualification"
        )
    return found


def _records(path: Path) -> Iterator[tuple[str, Record]]:
    try:
        for span in spans(path):
            yield from records(span)
    except DataError as error:
        raise AnnotationError(str(error)) from None


_ANSWERS = {"a": Choice.FIRST, "b": Choice.SECOND, "tie": Choice.TIE, "both_bad": Choice.BOTH_BAD}


def _gold(record: Record) -> Gold:
    if RESPONSES[0] in record:
        answer = record.get("answer")
        if answer not in _ANSWERS:
            raise ValueError(f'"answer" must be one of {", ".join(_ANSWERS)}, found {answer!r}')
        return Gold(_plain(record), _ANSWERS[str(answer)])
    parsed = _parsed(record)
    if isinstance(parsed, Preference):
        return Gold(_item(parsed.context.prompt, parsed.chosen, parsed.rejected), Choice.FIRST)
    return Gold(_item(parsed.context.prompt, parsed.response), Choice.UP if parsed.desirable else Choice.DOWN)


def _read(record: Record, mode: Mode | None) -> Iterator[ReadItem]:
    if record.get("written_for"):
        return  # a pair made of an answer that somebody wrote, which stands among the labels of its item
    id = str(record.get("id", ""))
    if isinstance(record.get("fields"), dict) and "responses" in record:
        yield ReadItem(id, _plain(record["fields"]), tuple(_argilla_labels(record)))
    elif isinstance(record.get("data"), dict) and isinstance(record.get("annotations"), list):
        own = str(record["data"].get("item", ""))
        yield ReadItem(own, _plain(record["data"]), tuple(_label_studio_labels(record)))
    elif isinstance(record.get("candidates"), list):
        texts = [read_response(c, "candidates") for c in record["candidates"]]
        size = 1 if mode == "labels" else 2
        if len(texts) < size:
            raise ValueError(f'"candidates" holds {len(texts)}; comparing takes two')
        for some in combinations(dict.fromkeys(texts), size):
            yield ReadItem("", _item(read_prompt(_needed(record, "prompt")), *some))
    elif any(name in record for name in (*RESPONSES, "response")):
        yield ReadItem(id, _plain(record), tuple(_own_labels(record)))
    else:
        parsed = _parsed(record)
        texts = [parsed.chosen, parsed.rejected] if isinstance(parsed, Preference) else [parsed.response]
        yield ReadItem(id, _item(parsed.context.prompt, *texts))


def _parsed(record: Record) -> Parsed:
    match detect(record):
        case "pairs":
            return parse_preference(record, _RULES, chat=True)
        case "labels":
            return parse_label(record, _RULES)
        case _:
            return parse_demonstration(record, _RULES)


def _plain(fields: Record) -> AnnotationItem:
    """Of ``prompt`` with ``response_a`` and ``response_b``, or with ``response``."""
    names = ("response",) if fields.get("response") is not None else RESPONSES
    texts = [read_response(_needed(fields, name), name) for name in names]
    return _item(read_prompt(_needed(fields, "prompt")), *texts)


def _needed(fields: Record, name: str) -> Any:
    if fields.get(name) is None:
        raise ValueError(f'"{name}" is missing; found {", ".join(fields) or "nothing"}')
    return fields[name]


def _item(prompt: str | tuple[Message, ...], *texts: str) -> AnnotationItem:
    messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    return AnnotationItem(messages, tuple(Shown(content_id("response", t), t) for t in texts))


# -- labels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _OwnLabel:
    """A label as ``exchange`` writes it."""

    annotator: str
    choice: Choice
    strength: Annotated[int, Field(ge=1, le=3)] | None = None
    rationale: str | None = None
    written: str | None = None
    swapped: bool = False
    review: bool = False
    seconds: Annotated[FiniteFloat, Field(ge=0)] | None = None


_own: TypeAdapter[list[_OwnLabel]] = TypeAdapter(list[_OwnLabel])
_seconds: TypeAdapter[float | None] = TypeAdapter(Annotated[FiniteFloat, Field(ge=0)] | None)


def _own_labels(record: Record) -> Iterator[ReadLabel]:
    for label in _checked(_own, record.get("labels") or [], "labels"):
        answer = Answer(label.choice, label.strength, label.rationale or "", label.written or "")
        yield ReadLabel(label.annotator, answer, label.swapped, label.seconds, label.review)


def _checked(kind: TypeAdapter[T], value: Any, name: str) -> T:
    """Raises ValueError naming the field of ``value`` that is wrong."""
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, (name, *first['loc'])))}: {first['msg']}") from None


def _argilla_labels(record: Record) -> Iterator[ReadLabel]:
    """Each person's part of the record is read as a record of its own."""
    responses, mode = record["responses"], _plain(record["fields"]).mode
    parts: dict[str, dict[str, Any]] = {}
    if isinstance(responses, dict):
        for question, given in responses.items():
            for said in _objects(given, question):
                parts.setdefault(str(said.get("user_id")), {})[question] = said
        alone: Sequence[tuple[str, Any]] = [(who, {q: [a] for q, a in part.items()}) for who, part in parts.items()]
    else:
        by_person: dict[str, list[Any]] = {}
        for said in _objects(responses, "responses"):
            by_person.setdefault(str(said.get("user_id")), []).append(said)
        alone = list(by_person.items())
    for who, part in alone:
        answer = _vote(record, lambda r: parse_argilla(r, _NAMED[mode]), {"responses": part})
        if answer is not None:
            yield ReadLabel(who, answer)


def _objects(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise ValueError(f'"{name}" must be a list of objects')
    return value


def _label_studio_labels(record: Record) -> Iterator[ReadLabel]:
    for annotation in _objects(record["annotations"], "annotations"):
        alone = {"annotations": [annotation]}
        answer = _vote(record, lambda r: parse_label_studio(r, _RULES), alone)
        if answer is not None:
            by = annotation.get("completed_by")
            who = by.get("email") or by.get("id") if isinstance(by, dict) else by
            yield ReadLabel(str(who), answer, seconds=_checked(_seconds, annotation.get("lead_time"), "lead_time"))


def _vote(record: Record, parse: Any, part: Record) -> Answer | None:
    fields = record.get("fields") or record["data"]
    try:
        parsed: Parsed = parse({**record, **part})
    except Unfit as unfit:
        return Answer(Choice.TIE) if unfit.reason is Reason.TIE else None
    if isinstance(parsed, Graded):
        return Answer(Choice.UP if parsed.desirable else Choice.DOWN)
    first = read_response(fields[RESPONSES[0]], RESPONSES[0])
    return Answer(Choice.FIRST if parsed.chosen == first else Choice.SECOND)
