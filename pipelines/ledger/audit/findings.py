"""What an audit finds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Breach:
    """Something in a run directory that cannot be so."""

    place: str
    """File and line, or file."""
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


@dataclass(slots=True)
class Findings:
    """What is wrong, what is worth knowing, and how much has been looked at."""

    breaches: list[Breach] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)

    def breach(self, place: str, message: str) -> None:
        self.breaches.append(Breach(place, message))
