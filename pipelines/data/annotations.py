"""Exports of annotation tools -> the same preferences and graded responses as any other record.

Understood of **Argilla**
  * 1.x feedback records and 2.x ``Record.serialize``: ``responses`` is a list of ``{"values": {question: {"value"}},
    "status"}`` or of ``{"question_name", "value", "status"}``
  * 2.x ``to_dict``/``to_json``: ``responses`` is ``{question: [{"value", "user_id"}]}``. It has no status, so drafts
    cannot be told from submitted answers.
  * 2.x flattened (``to_datasets``, ``push_to_hub``): columns ``question.responses`` and ``question.responses.status``
  with questions of these kinds
  * ranking of the response fields (ties by equal rank); label that names the better of two response fields or a tie;
    one rating a response field (the question's name contains the field's) -> preference
  * label or rating of a single response -> graded response
**Label Studio**: tasks of export type JSON, labelled with the Pairwise tag or with a Choices tag that names a side.

Several people's verdicts on a record become one: the mean decides, and ``probability`` is the share of them that
favours the chosen response, a tie being half a vote. Answers that were discarded, skipped or are drafts do not vote;
suggestions and predictions are models' and never do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from pipelines.data.records import (
    Graded,
    Parsed,
    Preference,
    Record,
    is_number,
    read_context,
    read_prompt,
    read_response,
)
from pipelines.data.report import Reason, Unfit
from pipelines.data.rules import AnnotationFields, DataRules
from pipelines.data.verdicts import Subject, by_scores, by_votes

_PROMPTS = ("prompt", "instruction", "question", "input", "query", "conversation", "chat", "messages", "context")
_RESPONSE = "response|answer|completion|generation|reply|output|candidate|summary|text|option"
_NUMBERED = re.compile(rf"(?:{_RESPONSE})[\s_-]?(?:\d+|[a-d])|left|right", re.IGNORECASE)
_SINGLE = re.compile(_RESPONSE, re.IGNORECASE)
_TIES = {"tie", "ties", "tied", "equal", "same", "both", "neither", "none", "draw",
         "nopreference", "bothgood", "bothbad"}  # fmt: skip
_GOOD = ("good", "yes", "true", "accept", "accepted", "like", "liked", "up", "thumbsup", "positive", "correct",
         "desirable")  # fmt: skip
_BAD = ("bad", "no", "false", "reject", "rejected", "dislike", "disliked", "down", "thumbsdown", "negative",
        "incorrect", "undesirable")  # fmt: skip
_WANTED = {**dict.fromkeys(_GOOD, True), **dict.fromkeys(_BAD, False)}


def parse_argilla(record: Record, rules: DataRules) -> Parsed:
    """A preference or a graded response, whichever the answers tell."""
    given = record.get("fields")
    flat = not isinstance(given, dict)
    fields: Record = given if isinstance(given, dict) else {k: v for k, v in record.items() if _is_field(k)}
    subject = _subject(fields, {**fields, "id": record.get("id", "")}, rules)
    answers = _flat_answers(record) if flat else _answers(record.get("responses"))
    wanted = rules.annotation.question
    if wanted:
        answers = {wanted: answers.get(wanted, [])}
    if not any(answers.values()):
        raise Unfit(Reason.UNANNOTATED)
    if len(subject.responses) == 1:
        return _grade(subject, answers, rules.annotation)
    return _prefer(subject, answers)


def _is_field(column: str) -> bool:
    return "." not in column and not column.startswith("_") and column != "id"


def parse_label_studio(record: Record, rules: DataRules) -> Preference:
    data, annotations = record.get("data"), record.get("annotations")
    if not isinstance(data, dict) or not isinstance(annotations, list):
        raise ValueError(
            'a Label Studio task needs "data" and "annotations"; export with the type JSON (not JSON-MIN or CSV)'
        )
    subject = _subject(data, {**data, "id": record.get("id", "")}, rules)
    if len(subject.responses) != 2:
        raise ValueError(f"a comparison has two responses, found {', '.join(subject.responses)}{_FIX}")
    names, wanted = list(subject.responses), rules.annotation
    votes = []
    for annotation in annotations:
        if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
            raise ValueError('every annotation needs a list "result"')
        if not annotation.get("was_cancelled"):
            votes.append(_label_studio_vote(annotation["result"], names, wanted.question, bool(wanted.responses)))
    return by_votes(subject, votes)


def _label_studio_vote(result: Sequence[Any], names: list[str], control: str, explicit: bool) -> float:
    """1 for the first response, 0 for the second. Submitting without a choice is how the Pairwise tag says tie."""
    for region in result:
        value = region.get("value") if isinstance(region, dict) else None
        if not isinstance(value, dict) or (control and region.get("from_name") != control):
            continue
        if region.get("type") == "pairwise":
            left = 1.0 if explicit else _left_vote(str(region.get("to_name", "")), names)
            return {"left": left, "right": 1.0 - left}.get(str(value.get("selected")), 0.5)
        if region.get("type") == "choices":
            side = _side(str((value.get("choices") or [""])[0]), names)
            if side is not None:
                return side
    return 0.5


def _left_vote(to_name: str, names: Sequence[str]) -> float:
    """A vote for the left: it is the tag that ``toName`` names first, and tags are mostly named like their fields."""
    tags = [_named(tag, names) for tag in to_name.split(",")]
    return 0.0 if tags == [names[1], names[0]] else 1.0


# -- fields ----------------------------------------------------------------------------------------------------------

_FIX = "; name the fields with annotation.prompt and annotation.responses"


def _subject(fields: Mapping[str, Any], record: Record, rules: DataRules) -> Subject:
    names = rules.annotation
    prompt = names.prompt or next((p for p in _PROMPTS if fields.get(p)), "")
    responses = names.responses or tuple(
        k for k, v in fields.items() if v is not None and k != prompt and _NUMBERED.fullmatch(k)
    )
    if len(responses) < 2 and not names.responses:
        responses = tuple(k for k, v in fields.items() if v is not None and k != prompt and _SINGLE.fullmatch(k))
    missing = [n for n in (prompt, *responses) if fields.get(n) is None]
    if not prompt or not responses or missing:
        which = ", ".join(missing) if prompt and responses else ("responses" if prompt else "prompt")
        raise ValueError(f"no field found for {which}; the fields are {', '.join(fields) or 'none'}{_FIX}")
    if not names.responses and len(responses) == 2:
        responses = tuple(sorted(responses, key=str.casefold))  # "left" is the one that is named first
    texts = {r: read_response(fields[r], r) for r in responses}
    return Subject(read_context(record, read_prompt(fields[prompt]), rules), texts)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _named(label: str, names: Sequence[str]) -> str | None:
    """The response that a label names: as its field, or by what tells the fields apart (1 and 2, a and b)."""
    wanted, plain = _plain(label), [_plain(n) for n in names]
    stem = 0
    while all(len(p) > stem and p[: stem + 1] == plain[0][: stem + 1] for p in plain):
        stem += 1
    found = [n for n, p in zip(names, plain, strict=True) if wanted and wanted in (p, p[stem:])]
    return found[0] if len(found) == 1 else None


def _side(label: str, names: Sequence[str]) -> float | None:
    """1 for the first of two responses, 0 for the second, 0.5 for a tie; None where a label says something else."""
    if _plain(label) in _TIES:
        return 0.5
    if _plain(label) in ("left", "right"):
        return float(_plain(label) == "left")
    name = _named(label, names)
    return None if name is None else float(name == names[0])


# -- Argilla's answers -----------------------------------------------------------------------------------------------

Answers = dict[str, list[Any]]
"""Submitted values by question."""


def _submitted(status: Any) -> bool:
    return status in (None, "submitted")


def _answers(responses: Any) -> Answers:
    out: Answers = {}
    if isinstance(responses, dict):
        for question, given in responses.items():
            if not isinstance(given, list) or not all(isinstance(a, dict) and "value" in a for a in given):
                raise ValueError(f'the responses to "{question}" must be a list of objects with "value"')
            out[question] = [a["value"] for a in given if _submitted(a.get("status"))]
        return out
    if not isinstance(responses, list):
        raise ValueError(f'"responses" must be a list or an object, found {type(responses).__name__}')
    for response in responses:
        known = isinstance(response, dict) and ("question_name" in response or isinstance(response.get("values"), dict))
        if not known:
            raise ValueError('every one of "responses" needs an object "values", or "question_name" and "value"')
        if not _submitted(response.get("status")):
            continue
        if "question_name" in response:
            out.setdefault(str(response["question_name"]), []).append(response.get("value"))
            continue
        for question, answer in response["values"].items():
            out.setdefault(question, []).append(answer.get("value") if isinstance(answer, dict) else answer)
    return out


def _flat_answers(record: Record) -> Answers:
    out: Answers = {}
    for key, values in record.items():
        if key.endswith(".responses"):
            if not isinstance(values, list):
                raise ValueError(f'"{key}" must be a list, found {type(values).__name__}')
            statuses = record.get(f"{key}.status") or [None] * len(values)
            if not isinstance(statuses, list) or len(statuses) != len(values):
                raise ValueError(f'"{key}.status" must have one entry for each of "{key}"')
            out[key.removesuffix(".responses")] = [v for v, s in zip(values, statuses, strict=True) if _submitted(s)]
    return out


def _prefer(subject: Subject, answers: Answers) -> Preference:
    names = list(subject.responses)
    for values in answers.values():
        ranks = [r for v in values if (r := _ranking(v, names)) is not None]
        if ranks and len(ranks) == len(values):
            return by_scores(subject, [{n: -rank for n, rank in r.items()} for r in ranks])
    if len(names) == 2:
        for values in answers.values():
            votes = [_side(v, names) for v in values if isinstance(v, str)]
            if votes and len(votes) == len(values) and all(v is not None for v in votes):
                return by_votes(subject, [v for v in votes if v is not None])
    ratings = {n: [v for q, vs in answers.items() if _plain(n) in _plain(q) for v in vs if is_number(v)] for n in names}
    rated = {n: vs for n, vs in ratings.items() if vs}
    if len(rated) > 1:
        rounds = min(len(vs) for vs in rated.values())
        if rounds == max(len(vs) for vs in rated.values()):
            return by_scores(subject, [{n: vs[i] for n, vs in rated.items()} for i in range(rounds)])
        return by_scores(subject, [{n: fmean(vs) for n, vs in rated.items()}])
    raise ValueError(
        f"no question compares {', '.join(names)}: expected a ranking of them, a label that names one, or one rating "
        f"each; the questions are {', '.join(answers)}; name the right one with annotation.question"
    )


def _ranking(value: Any, names: Sequence[str]) -> dict[str, float] | None:
    """Rank by response, 1 the best; None where the value is no ranking of at least two responses."""
    if not isinstance(value, list) or len(value) < 2:
        return None
    out: dict[str, float] = {}
    for position, entry in enumerate(value, start=1):
        label, rank = (entry.get("value"), entry.get("rank")) if isinstance(entry, dict) else (entry, position)
        name = _named(str(label), names)
        if name is None or not is_number(rank if rank is not None else position):
            return None
        out[name] = float(position if rank is None else rank)
    return out if len(out) == len(value) else None


def _grade(subject: Subject, answers: Answers, names: AnnotationFields) -> Graded:
    (response,) = subject.responses.values()
    unknown: list[str] = []
    for values in answers.values():
        if values and all(is_number(v) for v in values):
            if names.desirable_from is None:
                raise ValueError("responses are rated: say from which rating on with annotation.desirable_from")
            return Graded(subject.context, response, fmean(values) >= names.desirable_from)
        labels = [str(v) for v in values]
        wanted = [_wanted(label, names.desirable) for label in labels]
        if not wanted or any(w is None for w in wanted):
            unknown += labels[:3]
            continue
        share = fmean(float(bool(w)) for w in wanted)
        if share == 0.5:
            raise Unfit(Reason.TIE, f"{len(wanted)} labels are divided")
        return Graded(subject.context, response, share > 0.5)
    raise ValueError(
        f"no question says whether the response is wanted: found {', '.join(unknown) or 'nothing'} for "
        f"{', '.join(answers)}; name the labels that do with annotation.desirable, or the question with "
        f"annotation.question"
    )


def _wanted(label: str, desirable: Sequence[str]) -> bool | None:
    if desirable:
        return label in desirable
    return _WANTED.get(_plain(label))
