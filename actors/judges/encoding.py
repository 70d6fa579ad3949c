"""Questions as token ids for engines that take them: nothing that others wrote becomes a control token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from actors.judges.errors import JudgeError
from actors.judges.questions import Piece, Question, Turn

_MARK = re.compile("\x02(\\d+)\x03")


class QuestionEncoder:
    """``tokenizer`` is a Hugging Face tokenizer with a chat template.

    Raises JudgeError where it has none, drops a turn, or cannot express ``labels`` by distinct first tokens.
    """

    def __init__(self, tokenizer: Any, labels: Sequence[str], model: str) -> None:
        self._tokenizer, self._model = tokenizer, model
        if not getattr(tokenizer, "chat_template", None):
            raise JudgeError(f"judge.model {model} has no chat template: take an instruction-tuned model")
        controls = {t: i for t, i in tokenizer.get_added_vocab().items() if t.strip()}
        # Longest first; a control token inside of another would otherwise hide it.
        self._controls = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))) or r"(?!)")
        self._special = frozenset(tokenizer.all_special_ids)
        self.verdict_ids = self._first_tokens(labels)

    def encode(self, question: Question, answer: Sequence[Piece] = ()) -> tuple[int, ...]:
        """The conversation under the chat template up to where the model answers, or after the begin of an ``answer``.

        Ours is tokenised as the chat template means it, quoted text piece by piece as text: the ids of the one do not
        depend on the other.
        """
        pieces = [p for turn in question.turns for p in turn.pieces]
        parts = _MARK.split(self._rendered(question.turns))
        ids: list[int] = []
        for i, part in enumerate(parts):
            ids += self._quoted(pieces[int(part)].text) if i % 2 else self._ids(part)
        for piece in answer:
            ids += self._quoted(piece.text) if piece.quoted else self._ids(piece.text)
        return tuple(ids)

    def _rendered(self, turns: Sequence[Turn]) -> str:
        """The chat template's text with numbered marks where quoted pieces go."""
        messages, number, marks = [], 0, 0
        for turn in turns:
            content = ""
            for piece in turn.pieces:
                content += f"\x02{number}\x03" if piece.quoted else piece.text
                marks += piece.quoted
                number += 1
            messages.append({"role": turn.role, "content": content})
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except Exception as error:  # the template is the model's: it raises what it likes
            roles = ", ".join(turn.role for turn in turns)
            raise JudgeError(
                f"the chat template of judge.model {self._model} refuses messages of roles {roles}: {error}"
            ) from error
        if len(_MARK.findall(text)) != marks:
            raise JudgeError(f"the chat template of judge.model {self._model} drops or repeats what it is given")
        return str(text)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False)) if text else []

    def _quoted(self, text: str) -> list[int]:
        """Token ids of text in which control tokens are spelt out.

        A literal such as ``<|im_end|>`` is cut after its first character and the parts are tokenised apart: the text
        stays as it was, the control token cannot arise.
        """
        parts, start = [], 0
        while found := self._controls.search(text, start):
            parts.append(text[start : found.start() + 1])
            start = found.start() + 1
        ids: list[int] = []
        for part in (*parts, text[start:]):
            if part:
                ids += self._tokenizer.encode(part, add_special_tokens=False, split_special_tokens=True)
        if control := self._special.intersection(ids):
            names = self._tokenizer.convert_ids_to_tokens(sorted(control))
            raise ValueError(f"control tokens {names} cannot be kept out of a response; it was not judged")
        return ids

    def _first_tokens(self, labels: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """For each label the ids it may begin with: alone, after a space, at the start of a line."""
        starts = {label: self._starts(label) for label in labels}
        alone = {
            label: tuple(
                sorted(i for i in ids if not any(i in other for name, other in starts.items() if name != label))
            )
            for label, ids in starts.items()
        }
        if impossible := [label for label, ids in alone.items() if not ids]:
            spelt = "; ".join(
                f"{label!r} begins with {self._tokenizer.convert_ids_to_tokens(sorted(starts[label]))}"
                for label in impossible
            )
            raise JudgeError(
                f"the tokenizer of judge.model {self._model} cannot tell the answers {', '.join(labels)} apart by "
                f"their first token: {spelt}. Choose other verdicts in judge.template or another range of judge.grades "
                f"(single digits always work)"
            )
        return tuple(alone[label] for label in labels)

    def _starts(self, label: str) -> set[int]:
        newline = self._ids("\n")
        in_line = self._ids("\n" + label)
        found = [self._ids(label), self._ids(" " + label)]
        if in_line[: len(newline)] == newline:
            found.append(in_line[len(newline) :])
        blank = {*newline, *self._ids(" "), getattr(self._tokenizer, "unk_token_id", None)}
        return {ids[0] for ids in found if ids and ids[0] not in blank}
