"""One thing that is looked at before a run starts, and how well it fits; the checks themselves are in the modules."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; ``fix`` says what to do and is empty when all is well."""

    name: str
    level: Level
    detail: str
    fix: str = ""
