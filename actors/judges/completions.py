"""What OpenAI-compatible endpoints are sent and what they send back."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, Field

from actors.judges.questions import Question
from actors.judges.replies import Answered, Unanswered
from actors.judges.template import Rationale

_ANSWER_TOKENS = 4  # a letter, with a line break or a full stop around it
# What the servers of open models may read as control tokens inside of a message.
_CONTROL = re.compile(
    r"<(?=[|｜])|<(?=/?(?:s|bos|eos|pad|unk|think|tool_call|tool_response|start_of_turn|end_of_turn)>)"
    r"|<(?=</?SYS>>)|\[(?=/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS)\])"
)


class _Alternative(BaseModel):
    token: str
    logprob: float


class _Token(_Alternative):
    top_logprobs: list[_Alternative] = []


class _Logprobs(BaseModel):
    content: list[_Token] | None = None


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    logprobs: _Logprobs | None = None


class _Tokens(BaseModel):
    prompt_tokens: int = Field(0, ge=0)
    completion_tokens: int = Field(0, ge=0)


class Completion(BaseModel):
    """The part of a chat completion that a judge needs; what else endpoints send is ignored."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Tokens | None = None


@dataclass(frozen=True, slots=True)
class Dialect:
    """What an endpoint understands of the request; found out from its refusals, once."""

    top_logprobs: int = 20
    """Alternatives asked for; 0: it gives none."""
    tokens_field: str = "max_tokens"
    temperature: bool = True

    def adapted(self, refusal: str) -> Dialect | None:
        """What to try after the endpoint refused a request with this message; None: the fault is elsewhere."""
        if "logprob" in refusal and self.top_logprobs:
            return replace(self, top_logprobs=5 if self.top_logprobs > 5 else 0)
        # Not where it is said that a question is too long, for which some servers name both fields.
        if self.tokens_field == "max_tokens" and "max_completion_tokens" in refusal and "support" in refusal:
            return replace(self, tokens_field="max_completion_tokens")
        if "temperature" in refusal and self.temperature:
            return replace(self, temperature=False)
        return None

    def options(self, max_tokens: int) -> dict[str, Any]:
        options: dict[str, Any] = {self.tokens_field: max_tokens}
        if self.temperature:
            options["temperature"] = 0.0
        if self.top_logprobs:
            options |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return options


def chat_messages(question: Question) -> list[dict[str, str]]:
    """The messages of a question. What looks like a control token in a quoted piece gets a zero-width space."""
    return [
        {
            "role": turn.role,
            "content": "".join(
                _CONTROL.sub(lambda m: f"{m[0]}\u200b", p.text) if p.quoted else p.text for p in turn.pieces
            ),
        }
        for turn in question.turns
    ]


def most_output(rationale: Rationale | None) -> int:
    """Tokens that an answer may take."""
    return _ANSWER_TOKENS + (rationale.max_tokens if rationale else 0)


def read_answer(completion: Completion, labels: Sequence[str], rationale: Rationale | None) -> Answered | Unanswered:
    """The verdict in a completion: probabilities where there are log-probs, else the label that was said.

    It is the first word, or the first one after ``rationale.ends_with``. Anything else is unanswered.
    """
    choice = completion.choices[0]
    text = choice.message.content or ""
    said, start = "", 0
    if rationale is not None:
        before, marker, _ = text.rpartition(rationale.ends_with)
        if not marker:
            return Unanswered(f"the answer has no {rationale.ends_with!r}: {text[-80:]!r}")
        said, start = before.strip(), len(before) + len(marker)
    tokens = choice.logprobs.content if choice.logprobs else None
    if tokens and (token := _first_word(tokens, start)):
        # Alternatives first: where the token is among them, both have the same log-prob.
        shown = {token.token: token.logprob, **{t.token: t.logprob for t in token.top_logprobs}}
        mass = [math.fsum(math.exp(p) for t, p in shown.items() if t.strip() == label) for label in labels]
        return Answered(tuple(mass), said)
    answer = text[start:].strip(" \t\r\n.*_`'\"()[]")
    if answer not in labels:
        return Unanswered(f"the answer is {text[start:][:80]!r}, not one of {', '.join(labels)}")
    return Answered(tuple(float(label == answer) for label in labels), said, certain=True)


def _first_word(tokens: Sequence[_Token], start: int) -> _Token | None:
    """The first token at or after character ``start`` that is not blank; None where the characters do not tell."""
    at = 0
    for token in tokens:
        if at >= start and token.token.strip():
            return token
        at += len(token.token)
    return None
