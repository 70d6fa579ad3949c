"""The prompt files that ship with the configs: well-formed, varied, and held-out apart from train."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from actors.judges import rules
from preference.types import Message, Prompt

FOLDER = Path(__file__).parents[2] / "configs" / "prompts"
MINIMUM = {"sentiment.train": 320, "sentiment.heldout": 160, "verifiable.train": 256, "verifiable.heldout": 128}
TASKS = ("sentiment", "verifiable")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
# What the words of a prompt must say for each kind of constraint, besides its arguments.
STATED = {
    "punctuation:no_comma": "comma",
    "change_case:english_lowercase": "lowercase|small letters|no capital",
    "change_case:english_capital": "capital|all caps",
    "keywords:existence": "include|appear|use|contain|mention",
    "keywords:forbidden_words": "not|avoid|neither|forbidden|without|leave out|never",
    "keywords:frequency": "at least|or more|no fewer",
    "keywords:letter_frequency": "letter",
    "length_constraints:number_words": "words",
    "length_constraints:number_paragraphs": "two paragraphs|divider",
    "startend:end_checker": "finish|last words|end|close",
    "startend:quotation": "double quotation mark",
    "detectable_format:title": "title",
    "detectable_format:number_bullet_lists": "bullet",
    "detectable_format:number_highlighted_sections": "highlight",
    "detectable_format:constrained_response": "my answer is yes.*my answer is no.*my answer is maybe",
    "detectable_format:json_format": "json",
    "detectable_format:multiple_sections": "section 1.*section 2|sections",
    "detectable_content:postscript": "postscript",
    "detectable_content:number_placeholders": "placeholder",
    "combination:two_responses": r"two different.*\*{6}",
}


@cache
def load(name: str) -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())


def normalised(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def trigrams(text: str) -> frozenset[tuple[str, ...]]:
    words = normalised(text).split()
    return frozenset(tuple(words[i : i + 3]) for i in range(len(words) - 2))


def jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def test_trigram_overlap_of_near_duplicates_is_high() -> None:
    text = "Describe the soup you were served at the small restaurant by the station."
    assert jaccard(trigrams(text), trigrams(text.replace("station", "harbour"))) > 0.8
    assert jaccard(trigrams(text), trigrams("How was the ride on the branch line this morning?")) < 0.1


@pytest.mark.parametrize("name", MINIMUM)
def test_file_is_well_formed(name: str) -> None:
    rows = load(name)
    assert len(rows) >= MINIMUM[name]
    fields = {"id", "prompt"} | ({"instruction_id_list", "kwargs"} if name.startswith("verifiable") else set())
    assert {frozenset(row) for row in rows} == {frozenset(fields)}
    assert all(row["prompt"] == " ".join(row["prompt"].split()) != "" for row in rows)


@pytest.mark.parametrize("task", TASKS)
def test_ids_and_texts_are_unique_over_train_and_heldout(task: str) -> None:
    rows = load(f"{task}.train") + load(f"{task}.heldout")
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({normalised(row["prompt"]) for row in rows}) == len(rows)


@pytest.mark.parametrize(("task", "limit"), [("sentiment", 0.4), ("verifiable", 0.6)])
def test_heldout_is_not_near_train(task: str, limit: float) -> None:
    train = [trigrams(row["prompt"]) for row in load(f"{task}.train")]
    near = [
        (row["prompt"], overlap)
        for row in load(f"{task}.heldout")
        if (overlap := max(jaccard(trigrams(row["prompt"]), other) for other in train)) >= limit
    ]
    assert near == []


@pytest.mark.parametrize("name", MINIMUM)
def test_no_near_duplicates_within_a_file(name: str) -> None:
    grams = [trigrams(row["prompt"]) for row in load(name)]
    overlaps = [jaccard(a, b) for i, a in enumerate(grams) for b in grams[:i]]
    assert max(overlaps) < (0.4 if name.startswith("sentiment") else 0.8)


@pytest.mark.parametrize("name", ["sentiment.train", "sentiment.heldout"])
def test_sentiment_prompts_vary_in_form(name: str) -> None:
    words = [normalised(row["prompt"]).split() for row in load(name)]
    assert all(6 <= len(w) <= 26 for w in words)
    first = Counter(w[0] for w in words)
    assert max(first.values()) <= 0.07 * len(words)
    assert len(first) >= 50
    assert max(Counter(tuple(w[:2]) for w in words).values()) <= 0.06 * len(words)
    assert max(Counter(tuple(w[:3]) for w in words).values()) <= 0.03 * len(words)
    assert max(Counter(w[-1] for w in words).values()) <= 0.15 * len(words)


@pytest.mark.parametrize("name", ["sentiment.train", "sentiment.heldout"])
def test_sentiment_prompts_do_not_dictate_the_sentiment(name: str) -> None:
    prompt = Prompt("p", (Message("user", ""),), ())
    for rule in (rules.vader_sentiment, rules.pattern_sentiment):
        scores = rule(prompt, [row["prompt"] for row in load(name)])
        assert abs(sum(scores) / len(scores)) < 0.12
        assert sum(abs(score) > 0.6 for score in scores) <= 0.05 * len(scores)


@pytest.mark.parametrize("name", ["verifiable.train", "verifiable.heldout"])
def test_every_constraint_is_well_formed_and_its_checker_runs(name: str) -> None:
    responses = ["A plain answer, with a comma.", '"lowercase words in quotes"']
    for row in load(name):
        meta = {"instruction_id_list": row["instruction_id_list"], "kwargs": row["kwargs"]}
        prompt = Prompt(row["id"], (Message("user", row["prompt"]),), (), json.dumps(meta))
        for rule in (rules.verifiable, rules.verifiable_loose):
            scores = rule(prompt, responses)
            assert all(0 <= score <= 1 for score in scores), row["id"]


@pytest.mark.parametrize("name", ["verifiable.train", "verifiable.heldout"])
def test_every_constraint_is_stated_in_words(name: str) -> None:
    for row in load(name):
        text = row["prompt"].lower()
        for kind, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            assert re.search(STATED[kind], text), row
            for argument, value in arguments.items():
                if argument in ("relation", "let_relation"):
                    most, least = "less than|fewer than|under|below|not|avoid", "at least|or more|no fewer"
                    assert re.search(most if value == "less than" else least, text), row
                elif argument == "let_frequency" and value == 1:
                    assert "less than" in arguments.values(), row  # "avoid the letter": less than one
                else:
                    for item in value if isinstance(value, list) else [value]:
                        said = {str(item).lower(), NUMBERS.get(item, str(item).lower())}
                        assert any(word in text for word in said), (row, argument)


@pytest.mark.parametrize("name", ["verifiable.train", "verifiable.heldout"])
def test_constraints_of_a_prompt_do_not_conflict(name: str) -> None:
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_CONFLICTS

    for row in load(name):
        kinds = row["instruction_id_list"]
        for i, kind in enumerate(kinds):
            assert not INSTRUCTION_CONFLICTS[kind] & set(kinds[:i] + kinds[i + 1 :]), row


@pytest.mark.parametrize("name", ["verifiable.train", "verifiable.heldout"])
def test_constraint_kinds_are_mixed(name: str) -> None:
    kinds = Counter(kind for row in load(name) for kind in row["instruction_id_list"])
    assert len(kinds) >= 15
    assert max(kinds.values()) <= 0.2 * sum(kinds.values())
