"""The steps journal: order, incarnations, versions, and that every item is trained exactly once.

The items of the present weights are those of the steps that their lineage trained; what a dead incarnation trained
after its last checkpoint is not among them until it has been trained again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipelines.ledger.audit.findings import Findings
from pipelines.ledger.audit.journals import Line
from pipelines.ledger.events import AttemptBegan, Began, Event, PreparedStep, TrainedStep
from preference.types import Version


def check_steps(lines: Sequence[Line[Event]], found: Findings) -> None:
    """Steps in order within every incarnation; incarnations, attempts and versions never going back."""
    prepared: dict[int, str] = {}
    attempt, done = 0, 0
    alive: Began | None = None
    version = Version(0, 0)
    for line in lines:
        match line.record:
            case AttemptBegan(attempt=number):
                if number < attempt:
                    found.breach(line.place, f"attempt {number} began after attempt {attempt}")
                attempt = number
            case Began() as began:
                if alive is not None and began.incarnation <= alive.incarnation:
                    found.breach(line.place, f"incarnation {began.incarnation} began after {alive.incarnation}")
                if began.done > done:
                    found.breach(
                        line.place,
                        f"incarnation {began.incarnation} began with {began.done} steps in its weights, of which only "
                        f"{done} had been trained",
                    )
                alive, done = began, began.done
            case PreparedStep(step=step):
                if step in prepared:
                    found.breach(line.place, f"step {step} was prepared twice, first in {prepared[step]}")
                prepared.setdefault(step, line.place)
            case TrainedStep() as event:
                _check_trained(line.place, event, prepared, alive, done, found)
                version = _check_version(line.place, event, alive, version, found)
                done = event.step


def _check_trained(
    place: str, event: TrainedStep, prepared: Mapping[int, str], alive: Began | None, done: int, found: Findings
) -> None:
    if alive is None:
        found.breach(place, f"step {event.step} was trained before any weights were there")
    if event.step not in prepared:
        found.breach(place, f"step {event.step} was trained, but its data is not recorded as complete")
    if event.step <= done:
        found.breach(place, f"step {event.step} was trained a second time: the weights held steps up to {done}")
    elif event.step > done + 1:
        found.breach(place, f"step {event.step} was trained after step {done}: {event.step - done - 1} are missing")


def _check_version(place: str, event: TrainedStep, alive: Began | None, before: Version, found: Findings) -> Version:
    try:
        version = Version.parse(event.version)
    except ValueError:
        found.breach(place, f"version {event.version!r} is none: INCARNATION.STEP")
        return before
    if version < before:
        found.breach(place, f"version {version} after version {before}: versions never go back")
    if alive is not None and version.incarnation != alive.incarnation:
        found.breach(place, f"version {version} in incarnation {alive.incarnation}")
    if version.step > event.step:
        found.breach(place, f"version {version} was published before its step: {event.step} was trained last")
    return version


def lineage(lines: Sequence[Line[Event]]) -> dict[int, Line[Event]]:
    """The step events whose updates the present weights hold: by step, the event that made its data complete."""
    prepared: dict[int, Line[Event]] = {}
    trained: set[int] = set()
    for line in lines:
        match line.record:
            case PreparedStep(step=step):
                prepared.setdefault(step, line)
            case Began(done=done):
                trained = {s for s in trained if s <= done}
            case TrainedStep(step=step):
                trained.add(step)
    return {step: prepared[step] for step in sorted(trained & prepared.keys())}


def check_items(held: Mapping[int, Line[Event]], epochs: float, found: Findings) -> None:
    """Every item is in the lineage exactly once: a sampled pair altogether, a record of a file once an epoch."""
    at: dict[str, list[str]] = {}
    for line in held.values():
        assert isinstance(line.record, PreparedStep)
        for item in line.record.pairs:
            at.setdefault(item, []).append(line.place)
    found.counted["items trained"] = sum(map(len, at.values()))
    most = math.ceil(epochs)
    for item, places in at.items():
        if len(places) > most:
            found.breach(places[most], f"item {item} is trained {len(places)} times, first in {places[0]}")
