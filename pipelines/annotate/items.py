"""What people are asked, what they answer, and what several answers come to. Plain values, no database."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from configs.judges import HumanJudge
from preference.types import Message, content_id

Mode = Literal["pairs", "labels"]
Role = Literal["annotator", "reviewer"]
Standing = Literal["new", "qualified", "disqualified"]


class AnnotationError(Exception):
    """The store, a file of items or what is asked of them cannot be used; the message names it and the fix."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A response as a person sees it."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class AnnotationItem:
    """One question to people: two responses to compare (mode pairs), or one to like or dislike (mode labels)."""

    messages: tuple[Message, ...]
    responses: tuple[Shown, ...]

    @property
    def id(self) -> str:
        """Content id: the same question is the same item wherever it comes from."""
        turns = [(m.role, m.content) for m in self.messages]
        return content_id("item", turns, [(r.id, r.text) for r in self.responses])

    @property
    def mode(self) -> Mode:
        return "pairs" if len(self.responses) == 2 else "labels"

    def to_json(self) -> str:
        return _item.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> AnnotationItem:
        return _item.validate_json(text)


_item: TypeAdapter[AnnotationItem] = TypeAdapter(AnnotationItem)


class Choice(StrEnum):
    """An answer, about the responses in the item's own order: not as they were shown."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"
    BOTH_BAD = "both_bad"  # a tie that is counted by itself
    CANNOT_JUDGE = "cannot_judge"
    UP = "up"
    DOWN = "down"


# What the page says, for a person who was shown the item's first response on the left.
_PAGE: Mapping[Mode, Mapping[str, Choice]] = {
    "pairs": {
        "left": Choice.FIRST,
        "right": Choice.SECOND,
        "tie": Choice.TIE,
        "both_bad": Choice.BOTH_BAD,
        "cannot_judge": Choice.CANNOT_JUDGE,
    },
    "labels": {"up": Choice.UP, "down": Choice.DOWN, "cannot_judge": Choice.CANNOT_JUDGE},
}
_OTHER_SIDE = {Choice.FIRST: Choice.SECOND, Choice.SECOND: Choice.FIRST}


def choice_of(verdict: str, mode: Mode, swapped: bool) -> Choice:
    """The page's verdict, by sides, as an answer about the item. ValueError naming the verdicts there are."""
    choice = _PAGE[mode].get(verdict)
    if choice is None:
        raise ValueError(f"verdict is {verdict!r}: give one of {', '.join(_PAGE[mode])}")
    return _OTHER_SIDE.get(choice, choice) if swapped else choice


def verdict_of(choice: Choice, mode: Mode, swapped: bool) -> str:
    """Inverse of ``choice_of``."""
    seen = _OTHER_SIDE.get(choice, choice) if swapped else choice
    return next(verdict for verdict, c in _PAGE[mode].items() if c is seen)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a person says about an item."""

    choice: Choice
    strength: int | None = None
    """How much better: 1 slightly to 3 much."""
    rationale: str = ""
    written: str = ""
    """A better response, written by the person."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What the answers about an item come to. ``outcome`` CANNOT_JUDGE: nobody could."""

    outcome: Choice
    probability: float
    """Share of the answers for the first response (or for thumbs up), ties half; 0.5 where nobody could judge."""


_FOR_FIRST: Mapping[Choice, float] = {Choice.FIRST: 1.0, Choice.UP: 1.0, Choice.SECOND: 0.0, Choice.DOWN: 0.0}


def decide(choices: Sequence[Choice]) -> Decision:
    """Majority; where no answer has more than half of those who could judge, a tie.

    Tie and both bad train the same (nothing), so they stand together against a side; which of them it is, the more
    frequent one says.
    """
    votes: list[Choice] = [c for c in choices if c is not Choice.CANNOT_JUDGE]
    if not votes:
        return Decision(Choice.CANNOT_JUDGE, 0.5)
    share = sum(_FOR_FIRST.get(v, 0.5) for v in votes) / len(votes)
    for side in _FOR_FIRST:
        if 2 * votes.count(side) > len(votes):
            return Decision(side, share)
    bad = votes.count(Choice.BOTH_BAD) > votes.count(Choice.TIE)
    return Decision(Choice.BOTH_BAD if bad else Choice.TIE, share)


def disagree(choices: Sequence[Choice]) -> bool:
    """Whether those who could judge said different things."""
    ties = {Choice.BOTH_BAD: Choice.TIE}
    return len({ties.get(c, c) for c in choices if c is not Choice.CANNOT_JUDGE}) > 1


@dataclass(frozen=True, slots=True)
class Task:
    """What the people are asked to do, and by which rules their answers count; the same for every item of a store."""

    mode: Mode
    guidelines: str
    """Markdown."""
    warning: str = ""
    strength: bool = False
    rationale: bool = True
    write: bool = True
    overlap: int = 1
    lease_s: float = 600.0
    gold_share: float = 0.05
    qualification: int = 0
    qualification_accuracy: float = 0.8

    @property
    def definition_hash(self) -> str:
        """What judgements carry: other guidelines or another mode make another judge."""
        return content_id("human", self.mode, self.guidelines)

    def to_json(self) -> str:
        return json.dumps({f: getattr(self, f) for f in self.__dataclass_fields__}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Task:
        return _task.validate_json(text)

    @classmethod
    def of(cls, judge: HumanJudge) -> Task:
        """The task that a run's configuration describes; raises AnnotationError where the guidelines are unreadable."""
        if judge.guidelines:
            try:
                guidelines = Path(judge.guidelines).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise AnnotationError(f"guidelines = {judge.guidelines} cannot be read: {error}") from None
        else:
            guidelines = (files("pipelines.annotate") / f"guidelines_{judge.mode}.md").read_text(encoding="utf-8")
        return cls(
            mode=judge.mode,
            guidelines=guidelines,
            warning=judge.warning,
            strength=judge.strength,
            rationale=judge.rationale,
            write=judge.write,
            overlap=judge.overlap,
            lease_s=judge.lease_s,
            gold_share=judge.gold_share,
            qualification=judge.qualification,
            qualification_accuracy=judge.qualification_accuracy,
        )


_task: TypeAdapter[Task] = TypeAdapter(Task)
