"""One record of a file -> a preference or a graded response, still as text. Pure functions.

ValueError: the record is malformed, which stops the load. Unfit: it is well-formed but no item, which is counted.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.data.report import Reason, Unfit
from pipelines.data.rules import SHAPES, DataRules, Format
from preference.types import Message

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Context:
    """What the responses answer."""

    id: str
    """The record's own id; empty where it has none."""
    prompt: str | tuple[Message, ...]
    """Text, or a conversation that ends before the assistant's turn."""
    tools: str = ""
    """JSON list of the tool schemas that the chat template gets; empty: none."""
    meta: str = "{}"


@dataclass(frozen=True, slots=True)
class Preference:
    context: Context
    chosen: str
    rejected: str
    margin: float = 1.0
    probability: float = 1.0
    tied: bool = False


@dataclass(frozen=True, slots=True)
class Graded:
    context: Context
    response: str
    desirable: bool


Parsed = Preference | Graded


def filled(record: Record) -> Record:
    """Without the fields that are null: Parquet has every column in every row."""
    return {k: v for k, v in record.items() if v is not None}


def detect(record: Record) -> Format:
    """The format that a record's fields tell of; ValueError naming the fields where they tell of none."""
    if any(k.endswith(".responses") for k in record):  # null where nobody answered this record
        return "argilla"
    record = filled(record)
    if "data" in record and "annotations" in record:
        return "label_studio"
    if isinstance(record.get("fields"), dict) and "responses" in record:
        return "argilla"
    if "chosen" in record and "rejected" in record:
        return "pairs"
    if "completion" in record or "messages" in record:
        return "labels" if "label" in record else "sft"
    known = "".join(f"\n  {shape}" for shape in SHAPES.values())
    raise ValueError(f"no known format has the fields {_names(record)}; known are{known}")


def parse_preference(record: Record, rules: DataRules, chat: bool) -> Preference:
    """``chosen`` over ``rejected``, each an answer to ``prompt`` or, without one, a whole text or conversation.

    ``chat``: there is a chat template, so a "Human: ... Assistant: ..." transcript is read as a conversation.
    """
    _need(record, ("chosen", "rejected"), "pairs")
    prompt = record.get("prompt")
    chosen, rejected = record["chosen"], record["rejected"]
    strength = _strength(record)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is not None:
            context = read_context(record, read_prompt(prompt), rules)
            return Preference(context, _text(chosen, "chosen"), _text(rejected, "rejected"), *strength)
        whole = (_transcript(chosen), _transcript(rejected)) if chat else (None, None)
        if whole[0] is None or whole[1] is None:
            text, first, second = _split_text(chosen, rejected, chat)
            return Preference(read_context(record, text, rules), first, second, *strength)
        turns = whole[0], whole[1]
    else:
        turns = _conversation(chosen, "chosen"), _conversation(rejected, "rejected")
    before = None if prompt is None else _as_turns(read_prompt(prompt))
    start, first, second = _split_turns(before, *turns)
    return Preference(read_context(record, start, rules), first, second, *strength)


def parse_label(record: Record, rules: DataRules) -> Graded:
    """A response and whether it is wanted (``label``: true or false, 1 or 0)."""
    _need(record, ("label",), "labels")
    label = record["label"]
    if label not in (True, False):  # 1 and 0 are equal to them
        raise ValueError(f'"label" must be true or false, found {label!r}')
    return _graded(record, rules, bool(label), "labels")


def parse_demonstration(record: Record, rules: DataRules) -> Graded:
    """A response to imitate."""
    return _graded(record, rules, True, "sft")


def _graded(record: Record, rules: DataRules, desirable: bool, format: Format) -> Graded:
    if "messages" in record:
        turns = _conversation(record["messages"], "messages")
        return Graded(read_context(record, turns[:-1], rules), _answer(turns[-1:]), desirable)
    _need(record, ("prompt", "completion"), format)
    context = read_context(record, read_prompt(record["prompt"]), rules)
    return Graded(context, read_response(record["completion"], "completion"), desirable)


# -- pieces, used for annotation tools' records too ----------------------------------------------------------------


def read_context(record: Record, prompt: str | tuple[Message, ...], rules: DataRules) -> Context:
    """Check the prompt, and take along id, tools and the fields to keep."""
    if not prompt:
        raise Unfit(Reason.NO_PROMPT)
    if isinstance(prompt, str):
        _text(prompt, "prompt")
        if not prompt.strip():
            raise ValueError("the prompt is empty")
    elif prompt[-1].role == "assistant":
        raise Unfit(Reason.NOT_ONE_ANSWER, "the prompt ends with the assistant's turn")
    identifier = record.get("id", "")
    if isinstance(identifier, bool) or not isinstance(identifier, (str, int)):
        raise ValueError(f'"id" must be a string or an integer, found {type(identifier).__name__}')
    meta = {k: record[k] for k in rules.keep_fields if k in record}
    return Context(_text(str(identifier), "id"), prompt, _tools(record), json.dumps(meta, sort_keys=True, default=str))


def read_prompt(value: Any) -> str | tuple[Message, ...]:
    return value if isinstance(value, str) else _conversation(value, "prompt")


def read_response(value: Any, name: str) -> str:
    """Text, or the one assistant turn of a list of messages."""
    return _text(value, name) if isinstance(value, str) else _answer(_conversation(value, name))


def _answer(turns: tuple[Message, ...]) -> str:
    if len(turns) != 1 or turns[0].role != "assistant":
        roles = ", ".join(t.role for t in turns)
        raise Unfit(Reason.NOT_ONE_ANSWER, f"the response's turns: {roles or 'none'}")
    return turns[0].content


def _as_turns(prompt: str | tuple[Message, ...]) -> tuple[Message, ...]:
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def _conversation(value: Any, name: str) -> tuple[Message, ...]:
    if isinstance(value, str):  # one side a text, the other a list
        return (Message("assistant", _text(value, name)),)
    if not isinstance(value, list) or not value:
        raise ValueError(f'"{name}" must be a text or a non-empty list of messages, found {_kind(value)}')
    out = []
    for turn in value:
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            found = _names(turn) if isinstance(turn, dict) else _kind(turn)
            raise ValueError(f'every message of "{name}" needs a string "role" and a string "content", found {found}')
        if turn.get("tool_calls"):
            raise ValueError(f'"{name}" has a message with "tool_calls", which are not supported: write them as text')
        if not isinstance(turn.get("content"), str):
            raise ValueError(f'a message of "{name}" has no string "content", found {_kind(turn.get("content"))}')
        out.append(Message(turn["role"], _text(turn["content"], name)))
    return tuple(out)


def _split_turns(
    prompt: tuple[Message, ...] | None, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], str, str]:
    """(prompt, chosen answer, rejected answer); whole conversations lose what they have in common."""
    if prompt is not None and chosen[0].role == rejected[0].role == "assistant":
        return prompt, _answer(chosen), _answer(rejected)
    common = 0
    while common < min(len(chosen), len(rejected)) - 1 and chosen[common] == rejected[common]:
        common += 1
    turns = chosen[:common]
    if prompt is not None and turns[-len(prompt) :] != prompt:
        raise ValueError('"chosen" and "rejected" are whole conversations, but do not both begin with "prompt"')
    if not turns:
        raise Unfit(Reason.NO_PROMPT, "chosen and rejected have no turn in common")
    return turns, _answer(chosen[common:]), _answer(rejected[common:])


_SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_ANSWERS = "\n\nAssistant:"


def _transcript(text: str) -> tuple[Message, ...] | None:
    """Turns of a "Human: ... Assistant: ..." transcript; None for any other text."""
    parts = _SPEAKER.split(text.lstrip("\n"))
    if parts[0] or len(parts) < 5 or parts[1] != "Human":
        return None
    return tuple(
        Message(_ROLES[who], _text(said.strip(), "chosen")) for who, said in zip(parts[1::2], parts[2::2], strict=True)
    )


def _split_text(chosen: str, rejected: str, chat: bool) -> tuple[str, str, str]:
    """(prompt, chosen, rejected) of two texts with a common start.

    The prompt ends after the last "Assistant:" of that start, else before its last white space, so that no word is
    split; white space at the cut begins the responses, or belongs to neither where a template parts the turns.
    """
    if chosen == rejected:
        raise Unfit(Reason.IDENTICAL)
    length = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), -1)
    if length < 0:
        length = min(len(chosen), len(rejected))
    marker = chosen.rfind(_ANSWERS, 0, length)
    if marker >= 0:
        cut = marker + len(_ANSWERS)
    elif chosen[length : length + 1].isspace() and rejected[length : length + 1].isspace():
        cut = length
    else:
        cut = max((i for i in range(length) if chosen[i].isspace()), default=0)
    parts = chosen[:cut], _text(chosen[cut:], "chosen"), _text(rejected[cut:], "rejected")
    if not parts[0].strip():
        raise Unfit(Reason.NO_PROMPT, "chosen and rejected have no start in common")
    return (parts[0].strip(), parts[1].strip(), parts[2].strip()) if chat else parts


_SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"))


def _strength(record: Record) -> tuple[float, float, bool]:
    """(margin, probability, tied) as recorded; Unfit where they do not favour the chosen response.

    Only a record that says ``"tied": true`` is a tie to learn from; one without a margin is more often a mistake.
    """
    margin: float | None = None
    probability = 1.0
    if "margin" in record:
        margin = _number(record["margin"], "margin")
    else:
        for chosen, rejected in _SCORES:
            if chosen in record and rejected in record:
                margin = _number(record[chosen], chosen) - _number(record[rejected], rejected)
                break
    if "probability" in record:
        probability = _number(record["probability"], "probability")
        if not 0 <= probability <= 1:
            raise ValueError(f'"probability" must be between 0 and 1, found {probability}')
    tied = record.get("tied", False)
    if tied not in (True, False):
        raise ValueError(f'"tied" must be true or false, found {tied!r}')
    if tied:
        return abs(margin or 0.0), 0.5, True
    margin = 1.0 if margin is None else margin
    if margin < 0 or probability < 0.5:
        raise Unfit(Reason.CONTRADICTORY, f"margin {margin:g}, probability {probability:g}")
    if margin == 0 or probability == 0.5:
        raise Unfit(Reason.TIE, f"margin {margin:g}, probability {probability:g}")
    return margin, probability, False


def _tools(record: Record) -> str:
    tools = record.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except RecursionError:
            raise ValueError('"tools" is nested too deeply') from None
    if not tools:
        return ""
    if not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools):
        raise ValueError(f'"tools" must be a list of tool schemas, found {_kind(tools)}')
    return json.dumps(tools, sort_keys=True, ensure_ascii=False)


def _number(value: Any, name: str) -> float:
    if not is_number(value):
        raise ValueError(f'"{name}" must be a finite number, found {str(value)[:40]!r}')
    return float(value)


def is_number(value: Any) -> bool:
    """Whether ``value`` is a number that arithmetic can be done with: finite, and no larger than floats go."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f'"{name}" must be text, found {_kind(value)}')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f'"{name}" holds half a surrogate pair, which no tokenizer encodes') from None
    return value


def _need(record: Record, names: tuple[str, ...], format: Format) -> None:
    missing = [n for n in names if n not in record]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}; found {_names(record)}; expected {SHAPES[format]}")


def _names(record: Record) -> str:
    return ", ".join(sorted(map(str, record))) or "none"


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
