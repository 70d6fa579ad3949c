"""How questions are put to an engine: reasoned about first where the template wants it, answered by one token.

    questions ──requests──> engine        (rationales, if the template asks for them)
              <──finished──
              ──requests──> engine        (one constrained token each)
              <──finished── ... replies

``Asking.put`` is a generator that yields requests, is sent what finished and returns the replies. It waits for nothing
itself: an actor steps its own engine (``answered``), the driver awaits the samplers' (``answered_by``).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from actors.judges.encoding import QuestionEncoder
from actors.judges.errors import JudgeError
from actors.judges.questions import Piece, Question
from actors.judges.replies import Answered, Reply, Unanswered
from actors.judges.template import Rationale
from actors.requests import ChoiceRequest, Chosen, Finished, Request, Sampled, SampleRequest

Put = Generator[Sequence[Request], Sequence[Finished], list[Reply]]


@dataclass(frozen=True, slots=True)
class Asks:
    """What an engine has to know of a questionnaire."""

    labels: tuple[str, ...]
    rationale: Rationale | None
    probe: Question


class Asking:
    """Raises JudgeError where ``model`` cannot answer what ``asks`` asks.

    ``longest`` is the engine's context length, which ``knob`` sets; ids of requests begin with ``name``.
    """

    def __init__(self, asks: Asks, model: str, longest: int, knob: str, name: str = "q") -> None:
        self._encoder = QuestionEncoder(_tokenizer(model), asks.labels, model)
        self._rationale, self._longest, self._knob = asks.rationale, longest, knob
        self._names = (f"{name}-{number}" for number in count())
        self.shortest = len(self._encoder.encode(asks.probe))
        """Tokens of a question about next to nothing."""

    def put(self, questions: Sequence[Question]) -> Put:
        """One reply a question, in order; all are in the engine at once."""
        started = time.monotonic()
        rationales = (yield from self._reason(questions)) if self._rationale else [""] * len(questions)
        replies: list[Reply | None] = []
        requests: list[Request] = []
        for question, rationale in zip(questions, rationales, strict=True):
            prompt = self._encode(question, self._begin(rationale))
            if isinstance(prompt, Unanswered):
                replies.append(prompt)
                continue
            replies.append(None)
            requests.append(ChoiceRequest(next(self._names), prompt, self._encoder.verdict_ids))
        chosen = iter((yield requests) if requests else ())
        seconds = time.monotonic() - started
        return [r or _answered(next(chosen), why, seconds) for r, why in zip(replies, rationales, strict=True)]

    def _reason(self, questions: Sequence[Question]) -> Generator[Sequence[Request], Sequence[Finished], list[str]]:
        """What the model says before its verdict; empty where the question is too long, which the verdict reports."""
        assert self._rationale is not None
        longest, stop = self._rationale.max_tokens, self._rationale.ends_with
        prompts = [self._encode(question, ()) for question in questions]
        requests: list[Request] = [
            SampleRequest(next(self._names), p, longest, 0.0, 1.0, 0, stop) for p in prompts if isinstance(p, tuple)
        ]
        said = iter((yield requests) if requests else ())
        return [_text(next(said)) if isinstance(p, tuple) else "" for p in prompts]

    def _begin(self, rationale: str) -> tuple[Piece, ...]:
        """What stands in the model's turn before the verdict."""
        if self._rationale is None:
            return ()
        return Piece(rationale, True), Piece(f"\n{self._rationale.ends_with}", False)

    def _encode(self, question: Question, begin: Sequence[Piece]) -> tuple[int, ...] | Unanswered:
        try:
            prompt = self._encoder.encode(question, begin)
        except ValueError as error:
            return Unanswered(str(error))
        # The verdict takes a token, and what comes before it if there is still something to come.
        extra = 1 if begin or self._rationale is None else self._rationale.max_tokens + 8
        if len(prompt) + extra > self._longest:
            return Unanswered(
                f"the question has {len(prompt)} tokens and {extra} are needed to answer it, {self._knob} is "
                f"{self._longest}: raise it, or shorten guidelines or responses"
            )
        return prompt


def answered(put: Put, answer: Callable[[Sequence[Request]], Sequence[Finished]]) -> list[Reply]:
    """The replies of ``put``; ``answer`` finishes requests, in order."""
    try:
        requests = next(put)
        while True:
            requests = put.send(answer(requests))
    except StopIteration as done:
        return _replies(done)


async def answered_by(put: Put, answer: Callable[[Sequence[Request]], Awaitable[Sequence[Finished]]]) -> list[Reply]:
    """The same where answers are awaited."""
    try:
        requests = next(put)
        while True:
            finished = await answer(requests)
            requests = put.send(finished)
    except StopIteration as done:
        return _replies(done)


def _replies(done: StopIteration) -> list[Reply]:
    replies: Any = done.value
    return list(replies)


def _answered(finished: Finished, rationale: str, seconds: float) -> Answered:
    assert isinstance(finished, Chosen)  # what was asked for
    return Answered(finished.probabilities, rationale, seconds=seconds, weights=str(finished.version))


def _text(finished: Finished) -> str:
    assert isinstance(finished, Sampled)  # what was asked for
    return finished.text.strip()


def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise JudgeError(f"judge.model {model} cannot be loaded: {error}") from error
