"""What came back for a question: an answer or a reason why not, never an invented answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answered:
    probabilities: tuple[float, ...]
    """P of each allowed answer as the model gave it; the rest of the mass went to other words."""
    rationale: str = ""
    certain: bool = False
    """The answer came as text without probabilities: 1 for what was said and 0 for the rest."""
    seconds: float = 0.0
    cost: float = 0.0
    weights: str = ""
    """Version of the weights that answered, where the engine knows it."""


@dataclass(frozen=True, slots=True)
class Unanswered:
    error: str
    seconds: float = 0.0
    cost: float = 0.0


Reply = Answered | Unanswered
