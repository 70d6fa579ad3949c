"""Questions for language-model judges: prompts and responses put into a template that they cannot break out of.

A question is a sequence of pieces, each either ours (template and guidelines) or quoted (what others wrote). Quoted
pieces stand in fences with a code that none of them contains, so a response cannot close its own fence; whoever sends
the question keeps control tokens out of quoted pieces (``encoding.QuestionEncoder``, ``endpoint.chat_messages``).
What many questions share comes first: guidelines, then the conversation, then the responses.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from actors.judges.errors import JudgeError
from actors.judges.template import Mode, Rationale, Template, load_guidelines, load_template, render
from configs.judges import HttpJudge, LlmJudge
from preference.types import Match, Message, Prompt, Response, Written, content_id

_MARK = re.compile("\x02(\\d+)\x03")
Role = Literal["system", "user"]
_PROBE = ("the conversation", "an answer", "another answer")
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    quoted: bool
    """Written by others: never read as anything but text."""


@dataclass(frozen=True, slots=True)
class Turn:
    role: Role
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Question:
    turns: tuple[Turn, ...]

    @property
    def id(self) -> str:
        """Content hash."""
        return content_id([[t.role, [[p.text, p.quoted] for p in t.pieces]] for t in self.turns])


class Questionnaire:
    """Writes the questions of one judge. Raises JudgeError on a template or guidelines that cannot be used."""

    def __init__(self, judge: LlmJudge | HttpJudge) -> None:
        self.mode: Mode = judge.mode
        self.grades = tuple(range(judge.grades[0], judge.grades[1] + 1))
        self._template: Template = load_template(judge.template, judge.mode)
        self._guidelines = load_guidelines(judge.guidelines)
        self.probe = self._probe()
        """A question about nothing, to try a tokenizer with."""
        self._refuse_lost_fields(judge.template)

    @property
    def labels(self) -> tuple[str, ...]:
        """The allowed answers: (first, second[, tie]), or the grades from the lowest to the highest."""
        verdicts = self._template.verdicts
        if verdicts is None:
            return tuple(str(grade) for grade in self.grades)
        return tuple(label for label in (verdicts.first, verdicts.second, verdicts.tie) if label)

    @property
    def rationale(self) -> Rationale | None:
        return self._template.rationale

    def definition(self, *model: str) -> str:
        """Hash of everything that defines the judge's values: what it is asked, and the ``model`` that answers."""
        grades = self.grades if self.mode == "pointwise" else ()
        return content_id(self.mode, self._template.model_dump(), self._guidelines, grades, model)

    def both_orders(self, match: Match) -> tuple[Question, Question]:
        """Which of the two is better, asked with the first response shown first, then with the second shown first."""
        return self._compare(match.prompt, match.first, match.second), self._compare(
            match.prompt, match.second, match.first
        )

    def grade(self, prompt: Prompt, response: Response) -> Question:
        """How good the response is."""
        quotes = _Quotes()
        fields = self._common(prompt, quotes)
        code = fence_code(*quotes.texts, response.text)
        fields["response"] = quotes.fenced("answer", code, response.text)
        return self._question(fields, quotes)

    def _compare(self, prompt: Prompt, first: Response, second: Response) -> Question:
        quotes = _Quotes()
        fields = self._common(prompt, quotes)
        code = fence_code(*quotes.texts, *sorted((first.text, second.text)))  # the same in both orders
        for name, label, response in zip(("first", "second"), self.labels[:2], (first, second), strict=True):
            fields[name] = quotes.fenced(f"answer-{label}", code, response.text)
        return self._question(fields, quotes)

    def _common(self, prompt: Prompt, quotes: _Quotes) -> dict[str, str | int]:
        reference = reference_answer(prompt)
        code = fence_code(reference, *(m.content for m in prompt.messages))
        turns = [quotes.fenced(m.role if m.role in _ROLES else "message", code, m.content) for m in prompt.messages]
        return {
            "guidelines": self._guidelines,
            "conversation": "\n".join(turns),
            "reference": quotes.fenced("reference", code, reference) if reference else "",
            "lowest": self.grades[0],
            "highest": self.grades[-1],
        }

    def _question(self, fields: dict[str, str | int], quotes: _Quotes) -> Question:
        sources: tuple[tuple[Role, str], ...] = ("system", self._template.system), ("user", self._template.user)
        return Question(
            tuple(Turn(role, quotes.pieces(render(source, fields).strip())) for role, source in sources if source)
        )

    def _probe(self) -> Question:
        prompt = Prompt("probe", (Message("user", _PROBE[0]),), ())
        first, second = (Written(text, prompt.id, (), text) for text in _PROBE[1:])
        return self._compare(prompt, first, second) if self.mode == "pairwise" else self.grade(prompt, first)

    def _refuse_lost_fields(self, file: str) -> None:
        """A filter in the template, say, would change what stands for a response."""
        quoted = {p.text for t in self.probe.turns for p in t.pieces if p.quoted}
        needed = _PROBE if self.mode == "pairwise" else _PROBE[:2]
        if lost := [text for text in needed if text not in quoted]:
            raise JudgeError(
                f"judge.template {file}: {', '.join(lost)} got lost in it; put {{{{ conversation }}}} and the answers "
                f"in as they stand, without filters and outside of conditions"
            )


@dataclass(slots=True)
class _Quotes:
    """Texts of others, and the marks that stand for them while templates are rendered."""

    texts: list[str] = field(default_factory=list)

    def fenced(self, name: str, code: str, text: str) -> str:
        self.texts.append(text)
        return f"<{name}-{code}>\n\x02{len(self.texts) - 1}\x03\n</{name}-{code}>"

    def pieces(self, rendered: str) -> tuple[Piece, ...]:
        parts = _MARK.split(rendered)  # ours, number, ours, number, ..., ours
        found = [Piece(self.texts[int(p)], True) if i % 2 else Piece(p, False) for i, p in enumerate(parts)]
        return tuple(p for p in found if p.quoted or p.text)


def fence_code(*texts: str) -> str:
    """Eight hex digits that stand in none of ``texts``: whoever wrote them cannot have used it to close a fence.

    A function of the texts, so that the same question is the same tokens whenever it is asked.
    """
    for attempt in count():
        digest = hashlib.sha256(json.dumps([attempt, *texts]).encode()).hexdigest()[:8]
        if not any(digest in text.lower() for text in texts):
            return digest
    raise AssertionError("unreachable")


def reference_answer(prompt: Prompt) -> str:
    """``reference`` of the prompt's JSONL line; empty where there is none. Raises ValueError where it is no text."""
    meta = json.loads(prompt.meta)
    reference = meta.get("reference") if isinstance(meta, dict) else None
    if reference is None:
        return ""
    if not isinstance(reference, str):
        raise ValueError(f"prompt {prompt.id}: field 'reference' must be a string, not {reference!r:.80}")
    return reference
