"""Exports of Argilla and Label Studio: verdicts are counted, ties and skipped ones are no pairs, models do not vote."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.annotations import parse_argilla, parse_label_studio
from pipelines.data.records import Graded, Preference
from pipelines.data.report import Reason, Unfit
from pipelines.data.rules import AnnotationFields, DataRules
from tests.unit.test_pair_records import JSON

DATA = Path(__file__).parents[1] / "data"
RULES = DataRules()
TASKS = json.loads((DATA / "label_studio.json").read_text(encoding="utf-8"))
FIELDS = {"prompt": "p", "response-1": "one", "response-2": "two"}


def naming(**fields: object) -> DataRules:
    return DataRules(annotation=AnnotationFields(**fields))  # type: ignore[arg-type]


def task(data: dict, *results: list, cancelled: bool = False) -> dict:
    return {"id": 1, "data": data, "annotations": [{"result": r, "was_cancelled": cancelled} for r in results]}


def selected(side: str, to_name: str = "a,b") -> list:
    return [{"type": "pairwise", "from_name": "pw", "to_name": to_name, "value": {"selected": side}}]


def argilla(values: list, question: str = "better", fields: dict = FIELDS, status: str = "submitted") -> dict:
    return {"fields": fields, "responses": [{"values": {question: {"value": v}}, "status": status} for v in values]}


def reason(parse, record: dict, rules: DataRules = RULES) -> Reason:
    with pytest.raises(Unfit) as unfit:
        parse(record, rules)
    return unfit.value.reason


def test_label_studio_majority_and_share():
    first = parse_label_studio(TASKS[0], RULES)
    assert (first.context.id, first.context.prompt) == ("11", "Name a city in France.")
    assert (first.chosen, first.rejected) == ("Lyon is a city in France.", "France is nice.")
    assert (first.margin, first.probability) == (1, pytest.approx(2 / 3))


def test_label_studio_cancelled_annotations_and_predictions_do_not_vote():
    second = parse_label_studio(TASKS[1], RULES)
    assert (second.chosen, second.probability) == ("こんにちは！", 1)
    assert reason(parse_label_studio, TASKS[2]) is Reason.TIE  # submitted without a choice
    assert reason(parse_label_studio, TASKS[3]) is Reason.UNANNOTATED
    assert reason(parse_label_studio, task(FIELDS, selected("left"), selected("right"))) is Reason.TIE


def test_label_studio_left_is_the_tag_named_first():
    data = {"prompt": "p", "text1": "one", "text2": "two"}
    assert parse_label_studio(task(data, selected("left", "text1,text2")), RULES).chosen == "one"
    assert parse_label_studio(task(data, selected("left", "text2,text1")), RULES).chosen == "two"
    explicit = naming(responses=("text2", "text1"))
    assert parse_label_studio(task(data, selected("left", "x,y")), explicit).chosen == "two"


@pytest.mark.parametrize(
    ("choice", "chosen"), [("Response 2", "two"), ("2", "two"), ("left", "one"), ("response-1", "one")]
)
def test_label_studio_choices_may_name_a_side(choice, chosen):
    result = [{"type": "choices", "from_name": "why", "value": {"choices": ["unclear"]}},
              {"type": "choices", "from_name": "verdict", "value": {"choices": [choice]}}]  # fmt: skip
    assert parse_label_studio(task(FIELDS, result), RULES).chosen == chosen
    result[1]["value"] = {"choices": ["Tie"]}
    assert reason(parse_label_studio, task(FIELDS, result)) is Reason.TIE


def test_fields_are_found_by_name_or_named():
    odd = {"q": "p", "mine": "one", "yours": "two"}
    with pytest.raises(ValueError, match=r"no field found for prompt; the fields are q, mine, yours; name the fields"):
        parse_label_studio(task(odd, selected("left")), RULES)
    with pytest.raises(ValueError, match="no field found for hers"):
        parse_label_studio(task(odd, selected("left")), naming(prompt="q", responses=("mine", "hers")))
    assert (
        parse_label_studio(task(odd, selected("right")), naming(prompt="q", responses=("mine", "yours"))).chosen
        == "two"
    )
    with pytest.raises(ValueError, match="not JSON-MIN"):
        parse_label_studio({"data": odd, "annotations": {}}, RULES)


def test_argilla_1_rankings():
    rows = [json.loads(line) for line in (DATA / "argilla_v1.jsonl").read_text(encoding="utf-8").splitlines()]
    best = parse_argilla(rows[0], RULES)
    assert isinstance(best, Preference)
    assert (best.context.id, best.chosen, best.rejected) == ("r1", "The Seine.", "Paris.")
    assert (best.margin, best.probability) == (1.5, 1)  # ranks 3 and 2 against 1 and 1
    assert reason(parse_argilla, rows[1]) is Reason.TIE
    assert reason(parse_argilla, rows[2]) is Reason.UNANNOTATED  # discarded; the suggestion is a model's


def test_argilla_2_labels_and_their_flattened_form():
    rows = json.loads((DATA / "argilla_v2.json").read_text(encoding="utf-8"))
    first = parse_argilla(rows[0], RULES)
    assert isinstance(first, Preference)
    assert (first.chosen, first.rejected, first.probability) == ("Word", "Two words", 0.75)
    assert reason(parse_argilla, rows[1]) is Reason.UNANNOTATED
    flat = {**rows[2]["fields"], "id": "q3", "_server_id": "s", "better.responses": ["response_b", "response_a"],
            "better.responses.users": ["u1", "u2"], "better.responses.status": ["submitted", "draft"],
            "better.suggestion": "response_a"}  # fmt: skip
    nested = parse_argilla(rows[2], RULES)
    assert parse_argilla(flat, RULES) == nested
    assert nested.chosen == "Two words"


def test_argilla_2_rankings_are_lists_of_names_best_first():
    record = {"fields": FIELDS, "responses": {"r": [{"value": ["response-2", "response-1"], "user_id": "u"}]}}
    parsed = parse_argilla(record, RULES)
    assert (parsed.chosen, parsed.margin) == ("two", 1)


def test_argilla_serialized_responses_name_their_question():
    record = {"fields": FIELDS, "responses": [
        {"question_name": "better", "value": "response-2", "status": "submitted"},
        {"question_name": "better", "value": "response-1", "status": "draft"},
    ]}  # fmt: skip
    assert parse_argilla(record, RULES).chosen == "two"


def test_argilla_ratings_of_each_response():
    answers = [{"values": {"rating-response-1": {"value": 2}, "rating-response-2": {"value": 5}}},
               {"values": {"rating-response-1": {"value": 4}, "rating-response-2": {"value": 3}}}]  # fmt: skip
    assert reason(parse_argilla, {"fields": FIELDS, "responses": answers}) is Reason.TIE  # one against one
    parsed = parse_argilla({"fields": FIELDS, "responses": answers[:1]}, RULES)
    assert (parsed.chosen, parsed.margin, parsed.probability) == ("two", 3, 1)


@pytest.mark.parametrize(
    ("values", "rules", "desirable"),
    [
        (["good", "Good", "bad"], RULES, True),
        (["thumbs_down"], RULES, False),
        (["ship it"], naming(desirable=("ship it",)), True),
        (["hold"], naming(desirable=("ship it",)), False),
        ([4, 5], naming(desirable_from=4), True),
        ([4, 3], naming(desirable_from=4), False),
    ],
)
def test_argilla_labels_and_ratings_of_one_response(values, rules, desirable):
    parsed = parse_argilla(argilla(values, fields={"prompt": "p", "response": "one"}), rules)
    assert isinstance(parsed, Graded)
    assert (parsed.response, parsed.desirable) == ("one", desirable)


def test_argilla_says_what_it_cannot_tell():
    single = {"prompt": "p", "response": "one"}
    assert reason(parse_argilla, argilla(["good", "bad"], fields=single)) is Reason.TIE
    with pytest.raises(ValueError, match=r"annotation.desirable_from"):
        parse_argilla(argilla([4], fields=single), RULES)
    with pytest.raises(ValueError, match=r"found meh for better; .*annotation.desirable"):
        parse_argilla(argilla(["meh"], fields=single), RULES)
    with pytest.raises(ValueError, match=r"no question compares response-1, response-2.*the questions are better"):
        parse_argilla(argilla(["meh"]), RULES)
    assert reason(parse_argilla, argilla(["response-1"]), naming(question="other")) is Reason.UNANNOTATED
    with pytest.raises(ValueError, match='"responses" must be a list or an object'):
        parse_argilla({"fields": FIELDS, "responses": "x"}, RULES)


NOISE = st.dictionaries(st.sampled_from(["fields", "responses", "data", "annotations", "better.responses"]), JSON)


@settings(max_examples=60, deadline=None)
@given(NOISE, JSON, JSON)
def test_whatever_an_export_holds_it_is_parsed_refused_or_counted(noise, answer, result):
    for record in (
        noise,
        argilla([answer]),
        {**argilla([]), "responses": {"q": answer}},
        {**FIELDS, "q.responses": answer},
    ):
        with contextlib.suppress(ValueError, Unfit):
            assert isinstance(parse_argilla(record, RULES), (Preference, Graded))
    for record in (
        noise,
        task(FIELDS, [{"type": "pairwise", "value": result}]),
        {"data": FIELDS, "annotations": answer},
    ):
        with contextlib.suppress(ValueError, Unfit):
            assert isinstance(parse_label_studio(record, RULES), Preference)
