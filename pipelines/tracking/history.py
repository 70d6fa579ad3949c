"""The events of a run put together: metrics by name and step, and what else the report and the figures need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipelines.tracking.events import (
    Began,
    DataFile,
    Ended,
    Evaluated,
    Event,
    Exported,
    HeldOutLoss,
    Read,
    Stepped,
    Table,
    Tagged,
)
from preference.reports import StageTime


@dataclass(slots=True)
class Attempt:
    number: int
    began_ms: int
    tags: dict[str, str]
    ended_ms: int | None = None
    status: str = ""
    """FINISHED, FAILED or KILLED; empty: it is under way, or died without a word."""


@dataclass(slots=True)
class Record:
    """Everything that a run measured."""

    history: dict[str, dict[int, float]] = field(default_factory=dict)
    timeline: dict[int, tuple[StageTime, ...]] = field(default_factory=dict)
    ages: dict[int, int] = field(default_factory=dict)
    judges: dict[str, str] = field(default_factory=dict)
    evaluations: dict[int, Evaluated] = field(default_factory=dict)
    attempts: dict[int, Attempt] = field(default_factory=dict)
    files: dict[tuple[str, str], DataFile] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    """JSON by path; large, so only where it is asked for."""
    models: list[Exported] = field(default_factory=list)
    steps: int = 0
    version: str = ""
    seconds: float = 0.0
    """Of all iterations, evaluations and start-up not included."""

    @classmethod
    def of(cls, events: Iterable[Event], tables: bool = False) -> Record:
        record = cls()
        for event in events:
            record._add(event, tables)
        return record

    @property
    def last_evaluation(self) -> Evaluated | None:
        return self.evaluations[max(self.evaluations)] if self.evaluations else None

    def final(self, name: str) -> float | None:
        """The metric's latest value."""
        values = self.history.get(name)
        return values[max(values)] if values else None

    def _add(self, event: Event, tables: bool) -> None:
        match event:
            case Began():
                self.attempts[event.attempt] = Attempt(event.attempt, event.at_ms, dict(event.tags))
            case Tagged():
                if event.attempt in self.attempts:
                    self.attempts[event.attempt].tags |= event.tags
            case Ended():
                if event.attempt in self.attempts:
                    attempt = self.attempts[event.attempt]
                    attempt.ended_ms, attempt.status = event.at_ms, event.status
            case Read():
                self.files |= {(f.name, f.context): f for f in event.files}
            case Stepped():
                self._measured(event.step, event.metrics)
                self.timeline[event.step] = event.stages
                for age, count in event.ages.items():
                    self.ages[age] = self.ages.get(age, 0) + count
                self.judges |= event.judges
                self.steps, self.version = max(self.steps, event.step), event.version
                self.seconds += event.metrics.get("time/iteration", 0.0)
            case Evaluated():
                self._measured(event.step, event.metrics)
                self.evaluations[event.step] = event
            case HeldOutLoss():
                self._measured(event.step, event.metrics)
            case Table():
                if tables:
                    self.tables[event.path] = event.json
            case Exported():
                self.models.append(event)

    def _measured(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.history.setdefault(name, {})[step] = value
