"""Judgements as MLflow traces: a span a response, what judges said as assessments, what people said as feedback.

Every id is made from the run and the group of responses, so that a late answer finds the trace of the step that asked,
and what is sent twice is there once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from pipelines.tracking.events import Answer, Judged, clean
from preference.types import JudgeFailure, Judgement, Outcome, Rating, Verdict, Vote, ids_of

_PREVIEW = 1000  # characters of prompt and answers in the list of traces


def trace_id(run_id: str, group: str) -> str:
    """The trace of a group of responses in that run."""
    return f"tr-{_digest(run_id, group)}"


def send_trace(run_id: str, experiment: str, event: Judged) -> None:
    """Write the trace, or add to it what it does not have."""
    from mlflow.entities.trace_info import TraceInfo
    from mlflow.entities.trace_location import TraceLocation
    from mlflow.entities.trace_state import TraceState
    from mlflow.tracing.client import TracingClient

    client = TracingClient()  # of the tracking URI that ``connect`` has set
    name = trace_id(run_id, event.group)
    seconds = sum(j.seconds for j in (*event.judgements, *event.overruled))
    spans = list(_spans(name, event, seconds))
    client.start_trace(
        TraceInfo(
            trace_id=name,
            trace_location=TraceLocation.from_experiment_id(experiment),
            request_time=event.asked_ms,
            execution_duration=round(1000 * seconds),
            state=TraceState.IN_PROGRESS if event.waiting else TraceState.OK,
            request_preview=clean(event.messages[-1].content[:_PREVIEW]),
            response_preview=clean("\n\n".join(a.text for a in event.answers)[:_PREVIEW]),
            trace_metadata={"mlflow.sourceRun": run_id},
            tags={
                "mlflow.traceName": "judgement",
                "rondo.step": str(event.asked_step),
                "rondo.prompt": event.prompt_id,
                "rondo.group": event.group,
            },
            assessments=list(_assessments(name, event)),
        )
    )
    with suppress(NotImplementedError):  # servers before 3.4 keep traces without spans
        client.log_spans(experiment, spans)


def _spans(trace: str, event: Judged, seconds: float) -> Iterator[Any]:
    """The root, with all responses, and one span for each of them."""
    messages = [{"role": m.role, "content": clean(m.content)} for m in event.messages]
    named = {f"response {i}": clean(a.text) for i, a in enumerate(event.answers, start=1)}
    began, ended = event.asked_ms * 10**6, event.asked_ms * 10**6 + round(seconds * 10**9)
    about = {"prompt": event.prompt_id, "group": event.group, "step": event.asked_step}
    yield _span(trace, "", "judgement", "EVALUATOR", began, ended, {"messages": messages}, named, about)
    for i, answer in enumerate(event.answers, start=1):
        about = {"id": answer.id, "tokens": answer.tokens, "origin": answer.origin}
        given = {"messages": messages}
        yield _span(trace, answer.id, f"response {i}", "LLM", began, began, given, clean(answer.text), about)


def _span(
    trace: str, part: str, name: str, kind: str, began: int, ended: int, inputs: Any, outputs: Any,
    about: dict[str, Any],
) -> Any:  # fmt: skip
    """A finished span; ``part`` is what it is about, the root being about nothing in particular."""
    import json

    from mlflow.entities.span import Span
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, Status, StatusCode

    def context(of: str) -> SpanContext:
        return SpanContext(int(trace.removeprefix("tr-"), 16), int(_span_id(trace, of), 16), is_remote=False)

    attributes = {
        "mlflow.traceRequestId": trace,
        "mlflow.spanType": kind,
        "mlflow.spanInputs": inputs,
        "mlflow.spanOutputs": outputs,
        **about,
    }
    return Span(
        ReadableSpan(
            name=name,
            context=context(part),
            parent=context("") if part else None,
            start_time=began,
            end_time=ended,
            attributes={key: json.dumps(value, ensure_ascii=False) for key, value in attributes.items()},
            status=Status(StatusCode.OK),
        )
    )


def _assessments(trace: str, event: Judged) -> Iterator[Any]:
    for stands, judgements in ((True, event.judgements), (False, event.overruled)):
        for judgement in judgements:
            source = event.sources.get(judgement.judge.name, "LLM_JUDGE")
            yield _opinion(trace, event, judgement, source, stands)
            for number, vote in enumerate(judgement.votes):
                yield _feedback(trace, event, judgement, vote, number)


def _opinion(trace: str, event: Judged, judgement: Judgement, source: str, stands: bool) -> Any:
    """What a judge said: ``score`` of a response, ``verdict`` on two, or an error, never a value for a failure."""
    about = {
        "definition_hash": judgement.judge.definition_hash,
        "stands": str(stands).lower(),
        "seconds": f"{judgement.seconds:.3f}",
        "cost": f"{judgement.cost:g}",
    }
    place, ids = _place(event.answers, judgement), ids_of(judgement)
    key = ("opinion", judgement.judge.name, *ids, stands)
    match judgement:
        case Rating():
            return _assessment(
                trace, key, event, "score", source, judgement.judge.name, value=judgement.value, metadata=about,
                rationale=judgement.rationale, span=judgement.candidate_id,
            )  # fmt: skip
        case Verdict():
            about |= {"between": place, "probability": f"{judgement.probability:.4f}"}
            about["order_flipped"] = str(judgement.order_flipped).lower()
            value = _winner(event.answers, ids, judgement.outcome)
            return _assessment(
                trace, key, event, "verdict", source, judgement.judge.name, value=value, metadata=about,
                rationale=judgement.rationale,
            )  # fmt: skip
        case JudgeFailure():
            about["about"] = place
            return _assessment(
                trace, key, event, "verdict", source, judgement.judge.name, metadata=about,
                error=(judgement.outcome.value, judgement.error),
            )  # fmt: skip


def _feedback(trace: str, event: Judged, judgement: Judgement, vote: Vote, number: int) -> Any:
    """What one person said, under their pseudonym."""
    ids = ids_of(judgement)
    about = {"definition_hash": judgement.judge.definition_hash, "seconds": f"{vote.seconds:.1f}"}
    about["about"] = _place(event.answers, judgement)
    if vote.strength is not None:
        about["strength"] = str(vote.strength)
    sides = {"first": Outcome.FIRST, "second": Outcome.SECOND}
    value = _winner(event.answers, ids, sides[vote.choice]) if vote.choice in sides else vote.choice
    return _assessment(
        trace, ("vote", *ids, vote.annotator, number), event, "human", "HUMAN", vote.annotator or "erased",
        value=value, metadata=about, span=ids[0] if len(ids) == 1 else None,
    )  # fmt: skip


def _assessment(
    trace: str, key: tuple[object, ...], event: Judged, name: str, source: str, who: str, *, metadata: dict[str, str],
    value: float | str | None = None, rationale: str = "", span: str | None = None,
    error: tuple[str, str] | None = None,
) -> Any:  # fmt: skip
    from mlflow.entities import AssessmentSource, Feedback
    from mlflow.entities.assessment_error import AssessmentError

    feedback = Feedback(
        name=name,
        value=value,
        error=AssessmentError(error[0], clean(error[1])) if error else None,
        source=AssessmentSource(source, who),
        trace_id=trace,
        metadata=metadata,
        rationale=clean(rationale) or None,
        span_id=_span_id(trace, span) if span is not None else None,
        create_time_ms=event.at_ms,
        last_update_time_ms=event.at_ms,
    )
    feedback.assessment_id = f"a-{_digest(trace, *map(str, key))}"
    return feedback


def _winner(answers: Sequence[Answer], ids: Sequence[str], outcome: Outcome) -> str:
    sides = {Outcome.FIRST: 0, Outcome.SECOND: 1}
    return _name(answers, ids[sides[outcome]]) if outcome in sides else outcome.value


def _place(answers: Sequence[Answer], judgement: Judgement) -> str:
    return ", ".join(_name(answers, i) for i in ids_of(judgement))


def _name(answers: Sequence[Answer], id: str) -> str:
    return next((f"response {n}" for n, a in enumerate(answers, start=1) if a.id == id), id)


def _span_id(trace: str, part: str) -> str:
    return _digest(trace, "span", part)[:16]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
