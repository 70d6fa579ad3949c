"""Rule judges on worked examples, and on input that must make them raise."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from actors.judges import rules
from preference.types import Message, Prompt

Rule = Callable[[Prompt, Sequence[str]], Sequence[float]]

POSITIVE = "The food was delicious and the wonderful staff made us happy."
NEUTRAL = "The restaurant is on the corner and opens at noon."
NEGATIVE = "The food was awful and the rude staff ruined a terrible evening."


def prompt(**meta: Any) -> Prompt:
    return Prompt("p", (Message("user", "Describe the restaurant."),), (1, 2), json.dumps(meta))


def constrained(*constraints: tuple[str, dict[str, Any]]) -> Prompt:
    return prompt(instruction_id_list=[name for name, _ in constraints], kwargs=[kwargs for _, kwargs in constraints])


@pytest.mark.parametrize("rule", [rules.vader_sentiment, rules.pattern_sentiment])
def test_sentiment_orders_positive_neutral_negative(rule: Rule) -> None:
    positive, neutral, negative, empty = rule(prompt(), [POSITIVE, NEUTRAL, NEGATIVE, ""])
    assert 1 >= positive > 0.4 > neutral == 0.0 == empty > -0.4 > negative >= -1


@pytest.mark.parametrize("rule", [rules.vader_sentiment, rules.pattern_sentiment])
def test_sentiment_understands_negation(rule: Rule) -> None:
    plain, negated = rule(prompt(), ["The soup was good.", "The soup was not good."])
    assert plain > 0 > negated


def test_vader_worked_example() -> None:
    # valence 3.1 of "great" (lexicon) through x / sqrt(x^2 + 15)
    assert rules.vader_sentiment(prompt(), ["great"]) == pytest.approx([3.1 / (3.1**2 + 15) ** 0.5], abs=1e-4)


def test_the_second_sentiment_rule_is_not_gamed_by_repetition() -> None:
    responses = ["great", "great great great great"]
    first, second = rules.vader_sentiment(prompt(), responses)
    assert second > first + 0.2
    first, second = rules.pattern_sentiment(prompt(), responses)
    assert second == pytest.approx(first)


@pytest.mark.parametrize("rule", [rules.vader_sentiment, rules.pattern_sentiment])
def test_no_responses_give_no_scores(rule: Rule) -> None:
    assert list(rule(prompt(), [])) == []


@pytest.mark.parametrize("rule", [rules.vader_sentiment, rules.pattern_sentiment])
def test_a_response_that_is_no_text_raises(rule: Rule) -> None:
    with pytest.raises(TypeError, match="rates text, not NoneType"):
        rule(prompt(), ["fine", None])  # type: ignore[list-item]


def test_a_score_that_is_not_finite_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_vader", lambda: lambda _: float("nan"))
    with pytest.raises(ValueError, match="VADER gave nan for 'fine'"):
        rules.vader_sentiment(prompt(), ["fine"])


CHECKERS: list[tuple[str, dict[str, Any], str, str]] = [
    ("punctuation:no_comma", {}, "Red and blue.", "Red, and blue."),
    ("change_case:english_lowercase", {}, "the bread is warm this morning", "The bread is warm this morning"),
    ("change_case:english_capital", {}, "THE BREAD IS WARM THIS MORNING", "THE BREAD IS WARM this MORNING"),
    ("keywords:existence", {"keywords": ["bread", "tea"]}, "Tea and bread.", "Only bread."),
    ("keywords:forbidden_words", {"forbidden_words": ["tea"]}, "A steady hand.", "A cup of tea."),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "at least"}, "Tea is tea.", "Tea is hot."),
    (
        "keywords:letter_frequency",
        {"letter": "z", "let_frequency": 1, "let_relation": "less than"},
        "No such letter.",
        "A zebra.",
    ),
    ("length_constraints:number_words", {"num_words": 4, "relation": "less than"}, "Three words here.", "One two 3 4."),
    ("length_constraints:number_words", {"num_words": 4, "relation": "at least"}, "One two 3 4.", "Three words here."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One.\n***\nTwo.", "One.\n\nTwo."),
    ("startend:end_checker", {"end_phrase": "stay curious"}, "Read on and stay curious", "stay curious my friend"),
    ("startend:quotation", {}, '"A quoted answer."', '"A quoted" answer.'),
    ("detectable_format:title", {}, "<<On tea>>\nIt is hot.", "On tea\nIt is hot."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n* two", "* one\n2. two"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "a *bold* plan", "a bold plan"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    ("detectable_format:json_format", {}, '{"tea": "hot"}', "tea: hot"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\none\nSection 2\ntwo",
        "Section 1\none",
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        "Dear you\nP.S. Write soon",
        "Dear you, write soon",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}, "Dear [name]", "Dear Ann"),
    ("combination:two_responses", {}, "One.\n******\nTwo.", "One. Two."),
]


@pytest.mark.parametrize(("name", "kwargs", "good", "bad"), CHECKERS, ids=lambda value: str(value)[:40])
def test_each_checker_tells_good_from_bad(name: str, kwargs: dict[str, Any], good: str, bad: str) -> None:
    one = constrained((name, kwargs))
    assert list(rules.verifiable(one, [good, bad, good, ""])) == [1.0, 0.0, 1.0, 0.0]
    assert list(rules.verifiable_loose(one, [good, bad, ""])) == [1.0, 0.0, 0.0]


def test_verifiable_is_the_share_of_constraints() -> None:
    three = constrained(
        ("punctuation:no_comma", {}),
        ("keywords:existence", {"keywords": ["tea"]}),
        ("startend:quotation", {}),
    )
    responses = ['"Hot tea."', "Hot tea.", "Hot, tea.", "Hot, coffee."]
    assert list(rules.verifiable(three, responses)) == pytest.approx([1, 2 / 3, 1 / 3, 0])


def test_loose_forgives_a_first_line_and_asterisks() -> None:
    one = constrained(("startend:quotation", {}))
    chatty = ['Sure, here it is:\n"Hot tea."', '**"Hot tea."**']
    assert list(rules.verifiable(one, chatty)) == [0.0, 0.0]
    assert list(rules.verifiable_loose(one, chatty)) == [1.0, 1.0]


def test_case_checkers_give_the_same_answer_every_time() -> None:
    one = constrained(("change_case:english_lowercase", {}))
    # Texts that an unseeded language detector takes for English about every other time.
    texts = ["bus line ten", "open sea, warm sand"]
    first = list(rules.verifiable(one, texts))
    assert all(list(rules.verifiable(one, texts)) == first for _ in range(10))


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({}, "instruction_id_list"),
        ({"instruction_id_list": [], "kwargs": []}, "instruction_id_list"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "one length"),
        ({"instruction_id_list": ["punctuation:no_dash"], "kwargs": [{}]}, "unknown constraint 'punctuation:no_dash'"),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{}]}, "lacks its argument 'keywords'"),
        ({"instruction_id_list": ["startend:quotation"], "kwargs": [{"mark": "'"}]}, "mark"),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": -3, "relation": "less than"}],
            },
            "invalid 'num_words'",
        ),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 3, "relation": "exactly"}],
            },
            "exactly",
        ),
        (
            {
                "instruction_id_list": ["length_constraints:number_sentences"],
                "kwargs": [{"num_sentences": 3, "relation": "less than"}],
            },
            "NLTK data",
        ),
    ],
)
def test_verifiable_refuses_bad_constraints(meta: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rules.verifiable(prompt(**meta), ["fine"])


def test_verifiable_refuses_meta_that_is_no_object() -> None:
    with pytest.raises(ValueError, match="JSON object"):
        rules.verifiable(Prompt("p", (Message("user", "x"),), (1,), "[]"), ["fine"])


def test_importing_the_module_is_cheap() -> None:
    code = "import sys, actors.judges.rules; print(sorted({'ray', 'torch', 'nltk', 'datasets'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"
