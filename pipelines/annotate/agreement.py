"""How far the people agree with each other and with the gold items, and which biases they show."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from sqlalchemy import Connection, select

from pipelines.annotate.assignment import State
from pipelines.annotate.items import AnnotationItem, Choice
from pipelines.annotate.tables import items, labels, people, reports
from preference.agreement import MISSING, Share, krippendorff_alpha, longest_wins, position_bias

# Nominal categories; tie and both bad mean the same to training, but not to the people who said them.
_CODES: dict[Choice, int] = {c: i for i, c in enumerate(c for c in Choice if c is not Choice.CANNOT_JUDGE)}
_OUTCOMES: dict[Choice, float] = {Choice.FIRST: 1.0, Choice.SECOND: 0.0, Choice.TIE: 0.5, Choice.BOTH_BAD: 0.5}


@dataclass(frozen=True, slots=True)
class PersonAgreement:
    annotator: str
    labels: int
    agreement: Share
    """With each other person on the items that both could judge."""
    gold: Share
    """Right answers to gold items."""
    left: Share
    """Choices of the left response, of those for either side."""
    longest: Share
    """Choices of the longer response."""
    seconds: float | None
    """Median time of an item."""
    cannot_judge: int
    standing: str


@dataclass(frozen=True, slots=True)
class Agreement:
    alpha: float | None
    """Krippendorff's alpha, nominal; None where no item has two answers, or all answers are one."""
    annotators: tuple[PersonAgreement, ...]
    left: Share
    longest: Share
    seconds: float | None
    counts: dict[str, int]
    """Labels by choice, and items by state."""


@dataclass(frozen=True, slots=True)
class _Label:
    item: str
    person: int
    choice: Choice
    swapped: bool
    seconds: float | None
    gold: str | None


def measure(db: Connection, state: State) -> Agreement:
    """Of all labels that stand. Reviewers' words on conflicts are not counted: they saw the others' answers."""
    rows = db.execute(
        select(labels.c.item, labels.c.person, labels.c.choice, labels.c.swapped, labels.c.seconds, items.c.gold)
        .join(items, items.c.id == labels.c.item)
        .where(labels.c.undone.is_(None), ~labels.c.review)
        .order_by(labels.c.id)
    ).all()
    given = [_Label(r.item, r.person, Choice(r.choice), r.swapped, r.seconds, r.gold) for r in rows]
    longer = _longer(db) if state.task.mode == "pairs" else {}
    by_item: dict[str, list[_Label]] = {}
    for g in given:
        by_item.setdefault(g.item, []).append(g)
    same: dict[int, list[bool]] = {}
    for answers in by_item.values():
        for a, b in combinations([a for a in answers if a.choice is not Choice.CANNOT_JUDGE], 2):
            for person in (a.person, b.person):
                same.setdefault(person, []).append(a.choice is b.choice)
    who = db.execute(select(people.c.id, people.c.name, people.c.standing).order_by(people.c.id)).all()
    return Agreement(
        alpha=_alpha(by_item),
        annotators=tuple(
            _person(p, [g for g in given if g.person == p.id], same.get(p.id, []), longer)
            for p in who
            if any(g.person == p.id for g in given)
        ),
        left=_left(given),
        longest=_longest(given, longer),
        seconds=_median(given),
        counts=_counts(db, given),
    )


def _person(
    row: Any, given: Sequence[_Label], same: Sequence[bool], longer: dict[str, tuple[int, int]]
) -> PersonAgreement:
    gold = [g.choice.value == g.gold for g in given if g.gold is not None]
    return PersonAgreement(
        annotator=row.name or f"erased {row.id}",
        labels=len(given),
        agreement=Share.of(sum(same), len(same)),
        gold=Share.of(sum(gold), len(gold)),
        left=_left(given),
        longest=_longest(given, longer),
        seconds=_median(given),
        cannot_judge=sum(g.choice is Choice.CANNOT_JUDGE for g in given),
        standing=row.standing,
    )


def _alpha(by_item: dict[str, list[_Label]]) -> float | None:
    several = [a for a in by_item.values() if len(a) > 1]
    if not several:
        return None
    codes = np.full((len(several), max(map(len, several))), MISSING)  # who is who does not matter to alpha
    for unit, answers in zip(codes, several, strict=True):
        for column, answer in enumerate(answers):
            unit[column] = _CODES.get(answer.choice, MISSING)
    alpha = krippendorff_alpha(codes)
    return None if math.isnan(alpha) else alpha


def _left(given: Sequence[_Label]) -> Share:
    won = [_OUTCOMES[g.choice] for g in given if g.choice in _OUTCOMES and not g.swapped]
    won += [1 - _OUTCOMES[g.choice] for g in given if g.choice in _OUTCOMES and g.swapped]
    return position_bias(won)


def _longest(given: Sequence[_Label], lengths: dict[str, tuple[int, int]]) -> Share:
    pairs = [(_OUTCOMES[g.choice], *lengths[g.item]) for g in given if g.choice in _OUTCOMES]
    won, first, second = zip(*pairs, strict=True) if pairs else ((), (), ())
    return longest_wins(won, first, second)


def _median(given: Sequence[_Label]) -> float | None:
    return statistics.median([g.seconds for g in given if g.seconds is not None] or [0.0]) if given else None


def _longer(db: Connection) -> dict[str, tuple[int, int]]:
    """Characters of both responses of the items that have labels."""
    labelled = select(labels.c.id).where(labels.c.item == items.c.id, labels.c.undone.is_(None)).exists()
    out = {}
    for row in db.execute(select(items.c.id, items.c.content).where(labelled)):
        first, second = AnnotationItem.from_json(row.content).responses
        out[row.id] = len(first.text), len(second.text)
    return out


def _counts(db: Connection, given: Sequence[_Label]) -> dict[str, int]:
    counts = {c.value: sum(g.choice is c for g in given) for c in Choice if any(g.choice is c for g in given)}
    states = [r.state for r in db.execute(select(items.c.state))]
    counts |= {f"items_{s}": states.count(s) for s in ("open", "conflict", "decided", "gold")}
    counts["labels"] = len(given)
    counts["undone"] = len(db.execute(select(labels.c.id).where(labels.c.undone.is_not(None))).all())
    counts["reports"] = len(db.execute(select(reports.c.id)).all())
    return counts
