"""What the server's endpoints ask for and do, each inside the one transaction that answers it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import Connection
from starlette.responses import JSONResponse

from pipelines.annotate import labelling, people, review
from pipelines.annotate.agreement import measure
from pipelines.annotate.assignment import Leased, Nothing, Progress, State, next_item, progress, state_of
from pipelines.annotate.items import AnnotationItem, Answer, choice_of, verdict_of
from pipelines.annotate.labelling import Refused
from pipelines.annotate.people import Person, Secret

MOST_WRITTEN, MOST_REASON = 50_000, 5_000  # characters


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not hold NUL characters, which PostgreSQL cannot store")
    return text


Words = Annotated[str, AfterValidator(_storable)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CodeBody(Body):
    code: Words = Field(max_length=200)


class ItemBody(Body):
    item: Words = Field(max_length=100)


class LabelBody(ItemBody):
    verdict: str = Field(max_length=20)
    strength: int | None = Field(None, ge=1, le=3)
    rationale: Words | None = Field(None, max_length=MOST_REASON)
    written: Words | None = Field(None, max_length=MOST_WRITTEN)
    seconds: float | None = Field(None, ge=0, allow_inf_nan=False)


class ReportBody(ItemBody):
    reason: Words = Field(min_length=1, max_length=MOST_REASON)


class EmptyBody(Body):
    pass


def refused(status: int, message: str, **more: Any) -> JSONResponse:
    return JSONResponse({"error": message, **more}, status)


@dataclass(frozen=True, slots=True)
class Call:
    """A request by a known person, inside the transaction that answers it."""

    db: Connection
    person: Person
    state: State
    now: float


def about(person: Person, session: Secret) -> dict[str, Any]:
    return {"annotator": person.name, "role": person.role, "csrf": session.csrf}


def show_session(call: Call, session: Secret) -> Any:
    return about(call.person, session)


def close(call: Call, _: EmptyBody) -> Any:
    people.close_session(call.db, call.person.session)
    return {"closed": True}


def task(call: Call, _: Secret) -> Any:
    task = call.state.task
    return {
        "guidelines": task.guidelines, "warning": task.warning, "mode": task.mode, "strength": task.strength,
        "rationale": task.rationale, "write": task.write,
    }  # fmt: skip


def offer_next(call: Call, _: EmptyBody) -> Any:
    return _offer(next_item(call.db, call.person, call.state, call.now), progress(call.db, call.person, call.state))


def _offer(found: Leased | Nothing, made: Progress) -> dict[str, Any]:
    if not isinstance(found, Leased):
        return {"item": None, "reason": found, "progress": asdict(made)}
    shown = {"id": found.id, **_shown(found.item, found.swapped), "lease_expires": found.expires}
    return {"item": shown, "progress": asdict(made)}


def _shown(item: AnnotationItem, swapped: bool) -> dict[str, Any]:
    """What a person sees of an item: no names of players, judges or models."""
    messages = [{"role": m.role, "content": m.content} for m in item.messages]
    texts = [r.text for r in item.responses]
    if item.mode == "labels":
        return {"messages": messages, "response": texts[0]}
    left, right = reversed(texts) if swapped else texts
    return {"messages": messages, "left": left, "right": right}


def _answer(call: Call, body: LabelBody) -> Answer:
    swapped = call.state.swapped(body.item, call.person.id)
    try:
        choice = choice_of(body.verdict, call.state.task.mode, swapped)
    except ValueError as error:
        raise Refused(422, str(error)) from None
    return Answer(choice, body.strength, (body.rationale or "").strip(), (body.written or "").strip())


def label(call: Call, body: LabelBody) -> Any:
    answer = _answer(call, body)
    done = labelling.label(call.db, call.person, call.state, body.item, answer, body.seconds, call.now)
    if done.late:
        message = f"the label was kept, though your lease of item {body.item} had ended; go on with the next one"
        return refused(409, message, kept=True)
    return {"item": body.item, "verdict": body.verdict, "kept": True}


def skip(call: Call, body: ItemBody) -> Any:
    labelling.skip(call.db, call.person, body.item)
    return {"item": body.item, "skipped": True}


def undo(call: Call, _: EmptyBody) -> Any:
    found = labelling.undo(call.db, call.person, call.state, call.now)
    session = call.person
    fresh = people.by_id(call.db, session.id, session.session)
    return _offer(found, progress(call.db, fresh, state_of(call.db)))


def report(call: Call, body: ReportBody) -> Any:
    labelling.report(call.db, call.person, body.item, body.reason, call.now)
    return {"item": body.item, "reported": True}


def conflicts(call: Call, _: Secret) -> Any:
    found, total = review.conflicts(call.db, call.person, call.state)
    mode = call.state.task.mode
    return {
        "items": [
            {
                "id": c.id,
                **_shown(c.item, c.swapped),
                "labels": [
                    {
                        "annotator": f"annotator {number}",
                        "verdict": verdict_of(a.choice, mode, c.swapped),
                        "strength": a.strength, "rationale": a.rationale, "written": a.written,
                    }
                    for number, a in enumerate(c.answers, start=1)
                ],
            }
            for c in found
        ],
        "total": total,
    }  # fmt: skip


def resolve(call: Call, body: LabelBody) -> Any:
    review.resolve(call.db, call.person, call.state, body.item, _answer(call, body), body.seconds, call.now)
    return {"item": body.item, "verdict": body.verdict, "kept": True}


def agreement(call: Call, _: Secret) -> Any:
    return asdict(measure(call.db, call.state))
