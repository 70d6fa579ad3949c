"""Records of data files become preferences and graded responses, or say why they do not."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.records import Graded, Preference, detect, parse_demonstration, parse_label, parse_preference
from pipelines.data.report import Reason, Unfit
from pipelines.data.rules import DataRules
from preference.types import Message

RULES = DataRules()
SYSTEM, ASK = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}
GOOD, BAD = {"role": "assistant", "content": "Hello."}, {"role": "assistant", "content": "No."}
TURNS = (Message("system", "Be brief."), Message("user", "Hi?"))


def preference(chat: bool = True, **record: object) -> Preference:
    return parse_preference(record, RULES, chat)


@pytest.mark.parametrize(
    ("record", "format"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "pairs"),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, "pairs"),
        ({"prompt": "p", "chosen": [ASK], "rejected": [ASK], "messages": [ASK]}, "pairs"),
        ({"prompt": "p", "completion": "a", "label": True}, "labels"),
        ({"messages": [ASK, GOOD], "label": False}, "labels"),
        ({"prompt": "p", "completion": "a", "label": None}, "sft"),
        ({"messages": [ASK, GOOD]}, "sft"),
        ({"fields": {"prompt": "p"}, "responses": []}, "argilla"),
        ({"prompt": "p", "response-1": "a", "ranking.responses": None}, "argilla"),
        ({"data": {}, "annotations": []}, "label_studio"),
    ],
)
def test_the_format_is_recognised_by_the_fields(record, format):
    assert detect(record) == format


def test_an_unknown_format_names_the_fields_found_and_those_known():
    with pytest.raises(ValueError, match=r"fields answer, question; known are\n.*chosen.*rejected") as error:
        detect({"question": "?", "answer": "!"})
    assert "Label Studio" in str(error.value)


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"prompt": "Hi?", "chosen": "Hello.", "rejected": "No."}, "Hi?"),
        ({"prompt": "Hi?", "chosen": [GOOD], "rejected": [BAD]}, (Message("user", "Hi?"),)),
        ({"prompt": "Hi?", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, (Message("user", "Hi?"),)),
        ({"prompt": "Hi?", "chosen": [SYSTEM, ASK, GOOD], "rejected": [SYSTEM, ASK, BAD]}, TURNS),
        ({"prompt": [SYSTEM, ASK], "chosen": [GOOD], "rejected": [BAD]}, TURNS),
        ({"prompt": [SYSTEM, ASK], "chosen": "Hello.", "rejected": "No."}, TURNS),
        ({"prompt": [SYSTEM, ASK], "chosen": "Hello.", "rejected": [BAD]}, TURNS),
        ({"chosen": [SYSTEM, ASK, GOOD], "rejected": [SYSTEM, ASK, BAD]}, TURNS),
        ({"chosen": "Hi? Hello.", "rejected": "Hi? No."}, "Hi?"),
        ({"chosen": "\n\nHuman: Hi?\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."},
         (Message("user", "Hi?"),)),
    ],
)  # fmt: skip
def test_explicit_and_implicit_prompts_in_text_and_turns(record, prompt):
    parsed = preference(**record)
    assert (parsed.context.prompt, parsed.chosen, parsed.rejected) == (prompt, "Hello.", "No.")


def test_several_turns_stay_in_the_prompt():
    record = {"chosen": [ASK, GOOD, ASK, GOOD], "rejected": [ASK, GOOD, ASK, BAD]}
    assert [m.role for m in preference(**record).context.prompt] == ["user", "assistant", "user"]
    talk = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    parsed = preference(chosen=f"{talk} Same word then d", rejected=f"{talk} Same word then e")
    assert [m.content for m in parsed.context.prompt] == ["a", "b", "c"]
    assert parsed.chosen == "Same word then d"


def test_without_a_chat_template_texts_are_cut_but_not_changed():
    parsed = preference(False, chosen="Hi there  old friend", rejected="Hi there  only you")
    assert (parsed.context.prompt, parsed.chosen, parsed.rejected) == ("Hi there ", " old friend", " only you")
    talk = "\n\nHuman: a\n\nAssistant:"
    parsed = preference(False, chosen=f"{talk} I do", rejected=f"{talk} I don't")
    assert (parsed.context.prompt, parsed.chosen, parsed.rejected) == (talk, " I do", " I don't")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"chosen": "one", "rejected": "other"}, Reason.NO_PROMPT),
        ({"chosen": [GOOD], "rejected": [BAD]}, Reason.NO_PROMPT),
        ({"chosen": "Hi? same", "rejected": "Hi? same"}, Reason.IDENTICAL),
        ({"chosen": [ASK, GOOD, ASK, GOOD], "rejected": [ASK, BAD, ASK, GOOD]}, Reason.NOT_ONE_ANSWER),
        ({"prompt": [ASK, GOOD], "chosen": "a", "rejected": "b"}, Reason.NOT_ONE_ANSWER),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": 0}, Reason.TIE),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "probability": 0.5}, Reason.TIE),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "probability": 0.4}, Reason.CONTRADICTORY),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2}, Reason.CONTRADICTORY),
    ],
)
def test_well_formed_records_that_are_no_pair_have_a_reason(record, reason):
    with pytest.raises(Unfit) as unfit:
        preference(**record)
    assert unfit.value.reason is reason


def test_margin_scores_and_probability_are_kept():
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert preference(**pair).margin == preference(**pair).probability == 1
    assert preference(**pair, score_chosen=7.5, score_rejected=5).margin == 2.5
    assert preference(**pair, margin=0.25, probability=0.75).probability == 0.75


def test_a_tie_to_learn_from_says_so():
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert not preference(**pair, margin=0.5).tied
    for strength, margin in (({}, 0.0), ({"margin": -0.5}, 0.5), ({"score_chosen": 1, "score_rejected": 1}, 0.0)):
        read = preference(**pair, **strength, tied=True)
        assert (read.tied, read.margin, read.probability) == (True, margin, 0.5)
    with pytest.raises(ValueError, match="\"tied\" must be true or false, found 'yes'"):
        preference(**pair, tied="yes")


@pytest.mark.parametrize("label", [True, 1, False, 0])
def test_unary_labels(label):
    parsed = parse_label({"prompt": "Hi?", "completion": "Hello.", "label": label}, RULES)
    assert (parsed.response, parsed.desirable) == ("Hello.", bool(label))
    assert parse_label({"prompt": [ASK], "completion": [GOOD], "label": label}, RULES).desirable == bool(label)
    assert parse_label({"messages": [ASK, GOOD], "label": label}, RULES).response == "Hello."


def test_demonstrations_end_with_the_assistants_turn():
    parsed = parse_demonstration({"messages": [SYSTEM, ASK, GOOD]}, RULES)
    assert (parsed.context.prompt, parsed.response, parsed.desirable) == (TURNS, "Hello.", True)
    assert parse_demonstration({"prompt": "Hi?", "completion": "Hello."}, RULES).context.prompt == "Hi?"
    with pytest.raises(Unfit, match="user"):
        parse_demonstration({"messages": [SYSTEM, ASK]}, RULES)


def test_ids_tools_and_wanted_fields_travel_along():
    tools = [{"type": "function", "function": {"name": "f"}}]
    rules = DataRules(keep_fields=("source", "absent"))
    record = {"id": 7, "prompt": "p", "completion": "a", "tools": json.dumps(tools), "source": "x", "other": 1}
    context = parse_demonstration(record, rules).context
    assert (context.id, json.loads(context.tools), json.loads(context.meta)) == ("7", tools, {"source": "x"})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "p", "chosen": "a"}, "missing rejected; found chosen, prompt; expected preferences"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "the prompt is empty"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, '"prompt" must be a text or a non-empty list .*found int'),
        ({"prompt": "p", "chosen": "a", "rejected": 5}, '"rejected" must be a text or a non-empty list'),
        ({"prompt": "p", "chosen": [], "rejected": [BAD]}, '"chosen" must be .*non-empty'),
        ({"prompt": "p", "chosen": [{"from": "gpt"}], "rejected": [BAD]}, 'needs a string "role".*found from'),
        ({"prompt": "p", "chosen": [{**GOOD, "content": None}], "rejected": [BAD]}, "no string .content., found n"),
        ({"prompt": "p", "chosen": [{**GOOD, "tool_calls": [1]}], "rejected": [BAD]}, "tool_calls"),
        ({"prompt": "Ho?", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, 'do not both begin with "prompt"'),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": "x"}, '"margin" must be a finite number'),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": float("nan")}, "finite"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "probability": 2}, "between 0 and 1"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "id": [1]}, '"id" must be a string or an integer'),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "tools": {}}, None),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "tools": {"f": 1}}, '"tools" must be a list'),
        ({"prompt": [{"role": "user", "content": "\ud800"}], "chosen": "a", "rejected": "b"}, "surrogate"),
        ({"prompt": "p", "chosen": "\ud800", "rejected": "b"}, "surrogate"),
    ],
)  # fmt: skip
def test_malformed_records_say_what_was_found(record, message):
    if message is None:
        assert preference(**record).context.tools == ""
        return
    with pytest.raises(ValueError, match=message):
        preference(**record)


@pytest.mark.parametrize("label", ["true", None, 2, [1]])
def test_a_label_is_true_or_false(label):
    with pytest.raises(ValueError, match='"label" must be true or false'):
        parse_label({"prompt": "p", "completion": "a", "label": label}, RULES)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "value", "id"]), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = st.sampled_from(["prompt", "chosen", "rejected", "completion", "label", "messages", "margin", "id", "tools"])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(FIELDS, JSON), st.booleans())
def test_whatever_a_record_holds_it_is_parsed_refused_or_counted(record, chat):
    for parse in (lambda: parse_preference(record, RULES, chat), lambda: parse_label(record, RULES)):
        with contextlib.suppress(ValueError, Unfit):
            assert isinstance(parse(), (Preference, Graded))


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1), st.text(), st.text())
def test_texts_are_cut_without_losing_a_character(start, first, second):
    try:
        parsed = preference(False, chosen=start + first, rejected=start + second)
    except (Unfit, ValueError):
        return
    assert parsed.context.prompt + parsed.chosen == start + first
    assert parsed.context.prompt + parsed.rejected == start + second
