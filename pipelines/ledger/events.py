"""The steps journal: what a run did, in order, and which of it the present weights hold.

    attempt ─> began ─> prepared 1 ─> trained 1 ─> prepared 2 ─> ... ─> ended        the next attempt: began (done = d)

A process is an attempt; whatever sets the weights back, a new process or a trainer that had to be started again, begins
a new incarnation at the ``done`` steps that its checkpoint holds. What dead incarnations trained after those is not in
the weights any more: it is trained again from the journaled data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter

from preference.types import Fate

Time = float | None
"""Seconds since the epoch; None in what ledgers of schema 1 recorded, which knew no times."""


@dataclass(frozen=True, slots=True)
class AttemptBegan:
    """A process took the run over."""

    attempt: PositiveInt
    process: str
    """Its id and host."""
    time: Time
    event: Literal["attempt"] = "attempt"


@dataclass(frozen=True, slots=True)
class Began:
    """An incarnation of the weights begins, with ``done`` of ``steps`` steps in them."""

    incarnation: NonNegativeInt
    done: NonNegativeInt
    steps: NonNegativeInt
    tracking: str
    """MLflow's database, where it is a local one; else empty."""
    time: Time
    event: Literal["began"] = "began"


@dataclass(frozen=True, slots=True)
class PreparedStep:
    """A step's data is complete: from here on it is replayed, never made again."""

    step: PositiveInt
    pairs: tuple[str, ...]
    """Ids of the items to train on, labelled responses included."""
    fates: Mapping[Fate, NonNegativeInt] | None
    """What became of each of the step's prompts; None where schema 1 did not say."""
    time: Time
    groups: tuple[str, ...] | None = None
    """Names of the groups that it was made of, in their order; None where it was not recorded: those that were judged
    in it."""
    stale: tuple[str, ...] = ()
    """Names of what was dropped, too old to be trained, since the step before."""
    event: Literal["prepared"] = "prepared"


@dataclass(frozen=True, slots=True)
class TrainedStep:
    step: PositiveInt
    version: str
    """Of the weights that were published last."""
    loss: float | None
    """None: there was nothing to train on."""
    time: Time
    event: Literal["trained"] = "trained"


@dataclass(frozen=True, slots=True)
class Survived:
    """An actor was lost and replaced (``actors.faults``)."""

    stage: str
    cause: str
    """Names the actor and what it was doing."""
    time: Time
    event: Literal["fault"] = "fault"


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """The process left the run in order; after a kill or a power cut this is missing."""

    status: Literal["FINISHED", "FAILED", "KILLED"]
    reason: str
    """Message of the error; empty where there was none."""
    time: Time
    event: Literal["ended"] = "ended"


Event = AttemptBegan | Began | PreparedStep | TrainedStep | Survived | AttemptEnded
_event: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def event_record(event: Event) -> dict[str, Any]:
    """As the journal holds it."""
    return asdict(event)


def read_event(record: Mapping[str, Any]) -> Event:
    """Inverse of ``event_record``; raises pydantic's ValidationError on anything else."""
    return _event.validate_python(record)


DIED = "it did not say: killed, or the machine went down"


@dataclass(slots=True)
class Attempt:
    """A process that worked on the run."""

    number: int
    process: str
    began: Time
    ended: Time = None
    why: str = ""
    """Why it ended; empty: it goes on."""


@dataclass(slots=True)
class Incarnation:
    """One life of the weights."""

    attempt: int
    """0: schema 1 did not say."""
    number: int
    done: int
    """Steps that it began with."""
    reached: int
    """Steps that it had trained at its end."""
    began: Time
    ended: Time
    """None: it is under way, or nobody knows."""
    why: str = ""
    """Why it ended; empty: it goes on."""


@dataclass(slots=True)
class History:
    """A steps journal read from its beginning to its end."""

    prepared: dict[int, PreparedStep] = field(default_factory=dict)
    trained: dict[int, TrainedStep] = field(default_factory=dict)
    """The steps that the present weights hold."""
    replaced: int = 0
    """Steps that dead incarnations had trained and that were, or will be, trained again."""
    incarnations: list[Incarnation] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    status: str = ""
    """Of the last attempt: FINISHED, FAILED or KILLED; empty where it did not say."""
    faults: list[Survived] = field(default_factory=list)
    planned: int = 0
    """Steps that the run is to have; 0: not recorded."""
    tracking: str = ""
    setback_s: float = 0.0
    """Wall-clock time by which interruptions have set the run back: from reaching a state of the weights until it had
    been reached again, the pauses between attempts included."""
    last: Time = None
    """Time of the last event."""

    @property
    def done(self) -> int:
        """Steps that the present weights hold."""
        return max(self.trained, default=0)


def history(events: Sequence[Event]) -> History:
    """What a steps journal tells. Events that contradict each other are the audit's business, not this function's."""
    found = History()
    lost_at: tuple[int, float] | None = None  # (steps reached, when) of a state that has not been reached again
    for event in events:
        before = found.last
        found.last = event.time if event.time is not None else before
        match event:
            case AttemptBegan():
                _close(found, before, DIED)
                found.attempts.append(Attempt(event.attempt, event.process, event.time))
                found.status = ""
            case Began():
                lost_at = lost_at or _high_water(found)
                _close(found, event.time, "the weights had to be loaded anew", attempts=False)
                found.replaced += sum(step > event.done for step in found.trained)
                found.trained = {s: t for s, t in found.trained.items() if s <= event.done}
                attempt = found.attempts[-1].number if found.attempts else 0
                found.incarnations.append(
                    Incarnation(attempt, event.incarnation, event.done, event.done, event.time, None)
                )
                found.planned, found.tracking = event.steps or found.planned, event.tracking or found.tracking
                lost_at = _settled(found, lost_at, event.done, event.time)
            case PreparedStep():
                found.prepared.setdefault(event.step, event)
            case TrainedStep():
                found.trained[event.step] = event
                if found.incarnations:
                    found.incarnations[-1].reached = event.step
                lost_at = _settled(found, lost_at, event.step, event.time)
            case Survived():
                found.faults.append(event)
            case AttemptEnded():
                found.status = event.status
                why = {"FINISHED": "finished", "KILLED": "told to stop"}.get(event.status, "failed")
                _close(found, event.time, event.reason or why)
    if lost_at is not None and found.last is not None:
        found.setback_s += max(found.last - lost_at[1], 0.0)
    return found


def _close(found: History, at: Time, why: str, attempts: bool = True) -> None:
    """End the incarnation and the attempt that are under way, where they are."""
    for under_way in (found.incarnations[-1:], found.attempts[-1:] if attempts else []):
        for one in under_way:
            if not one.why:
                one.ended, one.why = at, why


def _high_water(found: History) -> tuple[int, float] | None:
    """(steps, when) of the state that the incarnation before had come to."""
    if not found.incarnations:
        return None
    last = found.incarnations[-1]
    event = found.trained.get(last.reached)
    when = event.time if event is not None and last.reached > last.done else last.began
    return None if when is None else (last.reached, when)


def _settled(found: History, lost: tuple[int, float] | None, reached: int, when: Time) -> tuple[int, float] | None:
    """What is still lost once ``reached`` steps are in the weights; what is not any more counts as set back."""
    if lost is None or when is None or reached < lost[0]:
        return lost
    found.setback_s += max(when - lost[1], 0.0)
    return None


def trained_items(found: History) -> Iterable[tuple[int, str]]:
    """(step, item id) of everything that the present weights were trained on, in the order of training."""
    for step in sorted(found.trained):
        if step in found.prepared:
            for item in found.prepared[step].pairs:
                yield step, item
