"""Records become token ids once: joined on ids, ended once, within the limits; every misfit is found and named."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.encode import Encoder, fit
from pipelines.data.records import Context, Graded, Preference
from pipelines.data.report import Change, Reason, Unfit
from pipelines.data.rules import DataError, DataRules
from preference.types import Labelled, Message, Pair
from tests.tiny import _tokenizer

ENDOFTEXT, IM_START, IM_END = 0, 1, 2
TURNS = (Message("system", "Sois bref."), Message("user", "Hé 👋?"), Message("assistant", "Oui."), Message("user", "!"))
ROLES = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
PROMPTED = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
NO_END = ROLES + "\n" + PROMPTED


@cache
def tokenizer(template: str | None = ""):
    """The tiny one; an empty template leaves it its own, None takes it away."""
    made = _tokenizer()
    if template != "":
        made.chat_template = template
    return made


def encoder(chat: str | None = "", vocab: int = 512, **rules: object) -> Encoder:
    return Encoder(tokenizer(chat), vocab, [], DataRules(**rules))  # type: ignore[arg-type]


def pair(chosen: str = "Yes, it is.", rejected: str = "No.", prompt: object = "Is it?") -> Preference:
    return Preference(Context("", prompt), chosen, rejected)  # type: ignore[arg-type]


def reason(made: Encoder, parsed) -> Reason:
    with pytest.raises(Unfit) as unfit:
        made.item(parsed)
    return unfit.value.reason


def rendered(turns: tuple[Message, ...], text: str) -> list[int]:
    messages = [{"role": m.role, "content": m.content} for m in turns] + [{"role": "assistant", "content": text}]
    return list(tokenizer().apply_chat_template(messages, return_dict=False))


CONTENT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda t: t.strip())


@settings(max_examples=60, deadline=None)
@given(CONTENT, CONTENT, CONTENT, st.booleans())
def test_joined_ids_are_the_templates_up_to_the_tail(question, first, second, several):
    turns = (*TURNS[:3], Message("user", question)) if several else (Message("user", question),)
    prompt = turns if several else question
    if first == second:
        assert reason(encoder(), pair(first, second, prompt)) is Reason.IDENTICAL
        return
    item, changes = encoder().item(pair(first, second, prompt))
    assert changes == ()
    for response in item.responses:
        ids = [*item.prompt.token_ids, *response.token_ids]
        full = rendered(turns, response.text)
        assert full[: len(ids)] == ids
        assert tokenizer().decode(full[len(ids) :]) == "\n"
        assert response.token_ids.count(IM_END) == 1
        assert response.token_ids[-1] == IM_END


def test_a_pair_carries_everything():
    parsed = Preference(Context("own", TURNS, "", '{"k": 1}'), "Oui.", "Non.", 2.0, 0.75)
    item, _ = encoder().item(parsed)
    assert isinstance(item, Pair)
    assert (item.id, item.margin, item.probability, item.prompt.meta) == ("own", 2.0, 0.75, '{"k": 1}')
    assert (item.prompt.messages, item.chosen.text, item.rejected.text) == (TURNS, "Oui.", "Non.")
    assert item.chosen.prompt_id == item.prompt.id


def test_ids_follow_the_content():
    one, _ = encoder().item(pair())
    again, _ = encoder().item(pair())
    other, _ = encoder().item(pair(rejected="Not at all."))
    assert one == again
    assert one.id != other.id
    assert one.prompt.id == other.prompt.id
    up, _ = encoder().item(Graded(Context("", "Is it?"), "Yes.", True))
    down, _ = encoder().item(Graded(Context("", "Is it?"), "Yes.", False))
    assert isinstance(up, Labelled)
    assert (up.desirable, down.desirable, up.prompt.id) == (True, False, one.prompt.id)
    assert up.id != down.id


def test_tools_reach_the_template():
    template = "{% if tools %}{{ tools[0]['name'] }} {% endif %}" + ROLES + "<|im_end|>\n" + PROMPTED
    with_tools, _ = encoder(template).item(Graded(Context("", "Hi?", '[{"name": "clock"}]'), "Yes.", True))
    without, _ = encoder(template).item(Graded(Context("", "Hi?"), "Yes.", True))
    assert tokenizer().decode(with_tools.prompt.token_ids).startswith("clock ")
    assert with_tools.prompt.id != without.prompt.id


@pytest.mark.parametrize(("chat", "template"), [(None, "chat"), ("", "none")])
def test_plain_text_is_encoded_as_it_stands(chat, template):
    plain = encoder(chat, template=template)
    item, changes = plain.item(pair(" Yes.", " No."))
    assert list(item.prompt.token_ids) == tokenizer().encode("Is it?")
    assert list(item.chosen.token_ids) == [*tokenizer().encode(" Yes."), IM_END]
    assert changes == ()
    item, changes = plain.item(pair(" Yes.<|im_end|>", " No."))
    assert item.chosen.token_ids.count(IM_END) == 1
    assert changes == (Change.DOUBLE_EOS,)
    with pytest.raises(ValueError, match="no chat template to render it"):
        plain.item(pair(prompt=TURNS))


def test_a_double_end_is_removed_and_counted():
    item, changes = encoder().item(pair("Yes.<|im_end|>"))
    assert list(item.chosen.token_ids) == [*tokenizer().encode("Yes."), IM_END]
    assert changes == (Change.DOUBLE_EOS,)
    assert reason(encoder(), pair("Yes.<|im_end|>\n<|im_start|>user\nmore")) is Reason.EOS_INSIDE
    assert reason(encoder(), pair("Yes.<|im_end|> more")) is Reason.EOS_INSIDE
    assert reason(encoder(NO_END), pair("Yes.<|im_end|> more")) is Reason.EOS_INSIDE


def test_a_template_may_end_both_the_turn_and_the_conversation():
    both = (
        ROLES + "<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt else '<|endoftext|>' }}"
    )
    made = Encoder(tokenizer(both), 512, [ENDOFTEXT], DataRules())
    item, changes = made.item(pair("Yes."))
    assert (list(item.chosen.token_ids), changes) == ([*tokenizer().encode("Yes."), IM_END], ())
    assert made.item(pair("Yes.<|im_end|>"))[1] == (Change.DOUBLE_EOS,)
    assert made.notes == ()


def test_a_missing_end_is_appended_kept_or_dropped():
    body = tokenizer().encode("Yes.\n")
    item, changes = encoder(NO_END).item(pair("Yes."))
    assert list(item.chosen.token_ids) == [*body, IM_END]
    assert changes == (Change.EOS_APPENDED,)
    item, changes = encoder(NO_END, missing_eos="keep").item(pair("Yes."))
    assert list(item.chosen.token_ids) == body
    assert changes == (Change.EOS_MISSING,)
    assert reason(encoder(NO_END, missing_eos="drop"), pair("Yes.")) is Reason.MISSING_EOS


def test_the_templates_own_end_of_turn_counts_though_it_is_not_eos():
    made = _tokenizer()
    made.eos_token = "<|endoftext|>"
    foreign = Encoder(made, 512, [], DataRules())
    item, changes = foreign.item(pair())
    assert item.chosen.token_ids[-1] == IM_END
    assert changes == ()
    assert "ends a turn with <|im_end|> (id 2), at which the model does not stop" in foreign.notes[0]
    assert Encoder(made, 512, [IM_END], DataRules()).notes == ()


def test_the_template_may_refuse_or_not_fit():
    picky = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + NO_END
    with pytest.raises(Unfit, match="no system turn") as unfit:
        encoder(picky).item(pair(prompt=TURNS))
    assert unfit.value.reason is Reason.TEMPLATE_REFUSED
    # Answers are announced otherwise than the generation prompt announces them.
    twisted = ROLES.replace("{{ m['role'] }}", "{{ 'bot' if m['role'] == 'assistant' else m['role'] }}") + PROMPTED
    assert reason(encoder(twisted), pair()) is Reason.TEMPLATE_MISMATCH
    # The blank before the answer is a token of its own in the prompt, but melts into the answer's first word.
    melting = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
    melting += "{{ 'assistant: ' if add_generation_prompt }}"
    assert reason(encoder(melting), pair("The capital", "The end")) is Reason.TEMPLATE_MISMATCH


def test_empty_identical_and_foreign_ids():
    assert reason(encoder(), pair(" \n")) is Reason.EMPTY_RESPONSE
    assert reason(encoder(None), pair("<|im_end|>")) is Reason.EMPTY_RESPONSE
    assert reason(encoder(), pair("No.", "No.")) is Reason.IDENTICAL
    small = encoder(vocab=300)
    assert reason(small, pair("The capital of France is Paris.")) is Reason.OUT_OF_VOCABULARY
    assert "the tokenizer has ids up to 511, the model's vocabulary ends at 299" in small.notes[0]
    assert encoder().notes == ()


def test_without_any_eos_nothing_can_end():
    made = _tokenizer()
    made.eos_token = None
    with pytest.raises(DataError, match="EOS"):
        Encoder(made, 512, [], DataRules())
    assert Encoder(made, 512, [IM_END], DataRules()).item(pair())[0].chosen.token_ids[-1] == IM_END


def limited(truncation: str, prompt: int, *responses: int, bos: int | None = None, budget: int = 0):
    """``fit`` of ids counted up, under limits of 6 (prompt) and 4 (response) tokens."""
    rules = DataRules(
        truncation=truncation,  # type: ignore[arg-type]
        max_prompt_tokens=6,
        max_response_tokens=4,
        max_item_tokens=budget,
    )
    changes: set[Change] = set()
    parts = [list(range(100 * (i + 1), 100 * (i + 1) + n)) for i, n in enumerate(responses)]
    return fit(list(range(prompt)), parts, rules, bos, changes), changes


@pytest.mark.parametrize("truncation", ["drop", "keep_start", "cut_prompt_start"])
def test_what_fits_is_left_alone(truncation):
    (prompt, responses), changes = limited(truncation, 6, 4, 3)
    assert (len(prompt), [len(r) for r in responses], changes) == (6, [4, 3], set())


@pytest.mark.parametrize(
    ("truncation", "lengths", "expected"),
    [
        ("drop", (7, 1, 1), Reason.PROMPT_TOO_LONG),
        ("drop", (1, 1, 5), Reason.RESPONSE_TOO_LONG),
        ("keep_start", (7, 1, 1), Reason.PROMPT_TOO_LONG),
        ("cut_prompt_start", (2, 10, 1), Reason.RESPONSE_TOO_LONG),
    ],
)
def test_what_is_too_long_is_dropped(truncation, lengths, expected):
    with pytest.raises(Unfit) as unfit:
        limited(truncation, *lengths)
    assert unfit.value.reason is expected


def test_a_response_may_lose_its_end_and_a_prompt_its_start():
    (prompt, responses), changes = limited("keep_start", 3, 6, 2)
    assert (prompt, responses) == ([0, 1, 2], [[100, 101, 102, 103], [200, 201]])
    assert changes == {Change.RESPONSE_CUT}
    (prompt, responses), changes = limited("cut_prompt_start", 9, 3, 2)
    assert (prompt, changes) == ([3, 4, 5, 6, 7, 8], {Change.PROMPT_CUT})
    (prompt, responses), _ = limited("cut_prompt_start", 6, 7, 2)  # the response takes room from the prompt
    assert (prompt, len(responses[0])) == ([3, 4, 5], 7)
    (prompt, _), _ = limited("cut_prompt_start", 9, 3, 2, bos=0)
    assert prompt == [0, 4, 5, 6, 7, 8]


def test_cutting_may_make_responses_equal_and_items_have_a_budget():
    rules = DataRules(truncation="keep_start", max_response_tokens=2)
    with pytest.raises(Unfit) as unfit:
        fit([1], [[5, 6, 7], [5, 6, 8]], rules, None, set())
    assert unfit.value.reason is Reason.IDENTICAL
    assert limited("drop", 6, 4, 4, budget=14)
    with pytest.raises(Unfit, match="14 tokens"):
        limited("drop", 6, 4, 4, budget=13)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["drop", "keep_start", "cut_prompt_start"]),
    st.integers(1, 12),
    st.lists(st.integers(1, 12), min_size=1, max_size=2),
    st.sampled_from([None, 0]),
)
def test_whatever_is_kept_is_within_the_limits_and_ends_as_it_did(truncation, prompt, responses, bos):
    try:
        (asked, answers), changes = limited(truncation, prompt, *responses, bos=bos)
    except Unfit:
        return
    assert 0 < len(asked) <= 6
    assert len(asked) + max(map(len, answers)) <= 10
    assert asked[-1] == prompt - 1
    assert (len(asked) < prompt) == (Change.PROMPT_CUT in changes)
    assert ([len(a) for a in answers] != responses) == (Change.RESPONSE_CUT in changes)


@pytest.mark.parametrize("field", ["max_prompt_tokens", "max_response_tokens"])
def test_impossible_limits_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1"):
        DataRules(**{field: 0})
