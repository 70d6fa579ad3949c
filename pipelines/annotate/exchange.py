"""Items and labels to and from files: JSONL, Argilla, Label Studio. All of them can be trained from directly."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, select, update

from pipelines.annotate.assignment import state_of
from pipelines.annotate.items import AnnotationError, AnnotationItem, Answer, Choice, Mode
from pipelines.annotate.labelling import insert_label, settle
from pipelines.annotate.people import add_person
from pipelines.annotate.reading import QUESTION, RESPONSES, ReadItem, read_items
from pipelines.annotate.store import Store, add_items
from pipelines.annotate.tables import items, labels, people

Format = Literal["jsonl", "argilla", "label_studio"]
FORMATS: tuple[Format, ...] = ("jsonl", "argilla", "label_studio")
_PEOPLE = uuid.UUID("5c1d6a3e-6f0c-5c57-9d0e-7f2a3b9d4e10")  # Argilla's user ids are UUIDs: these follow from names


@dataclass(frozen=True, slots=True)
class _Label:
    annotator: str
    answer: Answer
    swapped: bool
    seconds: float | None
    guidelines: str
    created: float
    review: bool


@dataclass(frozen=True, slots=True)
class _Labelled:
    id: str
    item: AnnotationItem
    outcome: Choice | None
    probability: float | None
    labels: tuple[_Label, ...]

    @property
    def votes(self) -> list[_Label]:
        """What counts: a reviewer's word, or else everybody's who could judge."""
        review = [x for x in self.labels if x.review]
        return review or [x for x in self.labels if x.answer.choice is not Choice.CANNOT_JUDGE]


@dataclass(frozen=True, slots=True)
class Exported:
    written: int
    """Records in the file."""
    left_out: int
    """Items that the format has no place for: not decided, or nobody could judge."""


def export_labels(store: Store, path: Path, format: Format) -> Exported:
    """Write every item but the gold ones. Tools' formats hold undecided items too, to be labelled there.

    ``path`` ends in .json (one array) or .jsonl (a record a line). Raises AnnotationError.
    """
    if path.suffix not in (".json", ".jsonl"):
        raise AnnotationError(f"{path}: the suffix must be .json or .jsonl")
    mode = store.state().task.mode
    if format == "label_studio" and mode == "labels":
        raise AnnotationError("Label Studio files hold comparisons; export labels with --format jsonl or argilla")
    found = store.read(_labelled)
    made = [_FORMATS[format](x, mode) for x in found]
    lines = [record for group in made for record in group]
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        if path.suffix == ".json":
            json.dump(lines, file, ensure_ascii=False, indent=1)
        else:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    os.replace(partial, path)
    return Exported(len(lines), sum(not group for group in made))


def _labelled(db: Connection) -> list[_Labelled]:
    given: dict[str, list[_Label]] = {}
    for r in db.execute(
        select(labels, people.c.name, people.c.id.label("who"))
        .join(people, people.c.id == labels.c.person)
        .where(labels.c.undone.is_(None))
        .order_by(labels.c.id)
    ):
        answer = Answer(Choice(r.choice), r.strength, r.rationale, r.written)
        name = r.name or f"erased-{r.who}"
        label = _Label(name, answer, r.swapped, r.seconds, r.guidelines, r.created, r.review)
        given.setdefault(r.item, []).append(label)
    return [
        _Labelled(
            r.id,
            AnnotationItem.from_json(r.content),
            Choice(r.outcome) if r.outcome else None,
            r.probability,
            tuple(given.get(r.id, ())),
        )
        for r in db.execute(select(items).where(items.c.state != "gold").order_by(items.c.seq))
    ]


def _subject(item: AnnotationItem) -> dict[str, Any]:
    if len(item.messages) == 1 and item.messages[0].role == "user":
        prompt: Any = item.messages[0].content
    else:
        prompt = [{"role": m.role, "content": m.content} for m in item.messages]
    names = RESPONSES if item.mode == "pairs" else ("response",)
    return {"prompt": prompt, **{n: r.text for n, r in zip(names, item.responses, strict=True)}}


def _jsonl(x: _Labelled, mode: Mode) -> list[dict[str, Any]]:
    """A preference or unary label with all that was said about it; a written answer is a record of its own."""
    if x.outcome in (None, Choice.CANNOT_JUDGE):
        return []
    subject = _subject(x.item)
    said = [
        {
            "annotator": y.annotator, "choice": y.answer.choice.value, "swapped": y.swapped, "seconds": y.seconds,
            "strength": y.answer.strength, "rationale": y.answer.rationale, "written": y.answer.written,
            "guidelines": y.guidelines, "created": y.created, "review": y.review,
        }
        for y in x.labels
    ]  # fmt: skip
    texts = [r.text for r in x.item.responses]
    if mode == "labels":
        # A record whose votes are divided has no label; ties stay with what they were asked about, undecided.
        if x.outcome not in (Choice.UP, Choice.DOWN):
            return []
        verdict: dict[str, Any] = {"completion": texts[0], "label": x.outcome is Choice.UP}
        rejected = None
    else:
        chosen, rejected = texts if x.outcome is not Choice.SECOND else reversed(texts)
        share = x.probability if x.probability is not None else 0.5
        sides = {Choice.FIRST: share, Choice.SECOND: 1 - share}
        verdict = {"chosen": chosen, "rejected": rejected, "probability": sides.get(x.outcome, 0.5)}
    records = [{"id": x.id, **subject, **verdict, "outcome": x.outcome.value, "labels": said}]
    for number, text in enumerate(dict.fromkeys(y.answer.written for y in x.votes if y.answer.written), start=1):
        better: dict[str, Any] = {"completion": text, "label": True}
        if rejected is not None:
            better = {"chosen": text, "rejected": rejected}
        records.append({"id": f"{x.id}-{number}", "prompt": subject["prompt"], **better, "written_for": x.id})
    return records


_ARGILLA = {
    Choice.FIRST: RESPONSES[0], Choice.SECOND: RESPONSES[1], Choice.TIE: "tie", Choice.BOTH_BAD: "both_bad",
    Choice.UP: "good", Choice.DOWN: "bad",
}  # fmt: skip


def _argilla(x: _Labelled, mode: Mode) -> list[dict[str, Any]]:
    votes = [{"value": _ARGILLA[y.answer.choice], "user_id": user_id(y.annotator)} for y in x.votes
             if y.answer.choice in _ARGILLA]  # fmt: skip
    reasons = [{"value": y.answer.rationale, "user_id": user_id(y.annotator)} for y in x.votes if y.answer.rationale]
    responses = {QUESTION[mode]: votes, **({"rationale": reasons} if reasons else {})}
    return [{"id": x.id, "fields": _subject(x.item), "responses": responses if votes else {}}]


def user_id(annotator: str) -> str:
    """The Argilla user id of a name; always the same."""
    return str(uuid.uuid5(_PEOPLE, annotator))


def _label_studio(x: _Labelled, mode: Mode) -> list[dict[str, Any]]:
    annotations = []
    for y in x.votes:
        if y.answer.choice in (Choice.FIRST, Choice.SECOND):
            side = "left" if y.answer.choice is Choice.FIRST else "right"
            region = {"type": "pairwise", "from_name": "comparison", "to_name": ",".join(RESPONSES),
                      "value": {"selected": side}}  # fmt: skip
        elif y.answer.choice in _ARGILLA:
            region = {"type": "choices", "from_name": "verdict", "to_name": RESPONSES[0],
                      "value": {"choices": [y.answer.choice.value]}}  # fmt: skip
        else:
            continue
        annotations.append(
            {"result": [region], "was_cancelled": False, "completed_by": y.annotator, "lead_time": y.seconds}
        )
    return [{"data": {"item": x.id, **_subject(x.item)}, "annotations": annotations}]


_FORMATS = {"jsonl": _jsonl, "argilla": _argilla, "label_studio": _label_studio}


# -- and back --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Imported:
    items: int
    labels: int
    """New ones; what the store had already is not counted."""


def import_labels(store: Store, path: Path) -> Imported:
    """Add a file's items and labels to the store. What is there already stays: importing twice changes nothing.

    An item that was exported from this store is recognised by its id, another one by its content. Raises
    AnnotationError, and then nothing was imported.
    """
    mode = store.state().task.mode
    read = read_items(path, mode)
    known = store.known([r.id for r in read])

    def work(db: Connection) -> Imported:
        return Imported(
            add_items(db, [(r.item, None) for r in read if r.id not in known]), _add_labels(db, read, known)
        )

    return store.write(work)


def _add_labels(db: Connection, read: Sequence[ReadItem], known: set[str]) -> int:
    state, added = state_of(db), 0
    names = {user_id(n): n for n in db.execute(select(people.c.name).where(people.c.name.is_not(None))).scalars()}
    for r in read:
        id = r.id if r.id in known else r.item.id
        for label in r.labels:
            person = add_person(db, names.get(label.annotator, label.annotator), None)
            mine = (labels.c.item == id) & (labels.c.person == person) & labels.c.undone.is_(None)
            row = db.execute(select(items.c.state).where(items.c.id == id)).one()
            if db.execute(select(labels.c.id).where(mine)).first() is not None or row.state == "gold":
                continue
            insert_label(db, person, state, id, label.answer, label.swapped, label.seconds, 0.0, label.review)
            if not label.review:
                counts = {"labels": items.c.labels + 1, "slots": items.c.slots - 1}
                db.execute(update(items).where(items.c.id == id).values(counts))
            settle(db, state, id, row.state)
            added += 1
    return added
