"""What may be asked of a data file: its format, where its fields are, how long an item may be, what happens to misfits.

A file is read under one ``DataRules``; whatever they leave out or change is counted in the ``LoadReport``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Format = Literal["pairs", "labels", "sft", "argilla", "label_studio", "run"]

# What a record of each format holds, in the words of an error message.
SHAPES: dict[Format, str] = {
    "pairs": 'preferences: "chosen" and "rejected", with or without "prompt"',
    "labels": 'unary labels: "label" (true or false) with "prompt" and "completion", or with "messages"',
    "sft": 'demonstrations: "prompt" and "completion", or "messages"',
    "argilla": 'Argilla records: "fields" and "responses", or flattened columns ending in ".responses"',
    "label_studio": 'Label Studio tasks (export type JSON): "data" and "annotations"',
}


class DataError(Exception):
    """A data file, a run or its tokenizer cannot be used; the message names the place, what was found and the fix."""


@dataclass(frozen=True, slots=True)
class AnnotationFields:
    """Where an annotation tool's export keeps what. Whatever is empty is recognised by its name."""

    prompt: str = ""
    """Field with the prompt."""
    responses: tuple[str, ...] = ()
    """Fields with the responses; for Label Studio (left, right) as in the Pairwise tag's ``toName``."""
    question: str = ""
    """Argilla question (or Label Studio control) that holds the verdict."""
    desirable: tuple[str, ...] = ()
    """Labels that mean "wanted" where one response is labelled; empty: the usual words (good, yes, accept ...)."""
    desirable_from: float | None = None
    """Where one response is rated: mean ratings from here on are desirable. Scales differ, so there is no default."""


@dataclass(frozen=True, slots=True)
class DataRules:
    format: Literal["auto", "pairs", "labels", "sft", "argilla", "label_studio"] = "auto"
    """Format of the records; auto: recognised by the fields of the first one."""
    template: Literal["chat", "none"] = "chat"
    """Text goes through the model's chat template, or is encoded as it stands (as where a model has no template)."""
    missing_eos: Literal["append", "keep", "drop"] = "append"
    """A response whose end the template does not mark: mark it, leave it so, or leave the item out."""
    truncation: Literal["drop", "keep_start", "cut_prompt_start"] = "drop"
    """What is too long is left out; or a response loses its end (and its EOS with it); or the prompt loses its start,
    until prompt and longest response fit ``max_prompt_tokens + max_response_tokens`` together."""
    max_prompt_tokens: int = 512
    """Longest prompt in tokens."""
    max_response_tokens: int = 512
    """Longest response in tokens, the end of the turn included."""
    max_item_tokens: int = 0
    """Longest item in tokens: the prompt and all of its responses, which share one row of a micro-batch. 0: any."""
    keep_fields: tuple[str, ...] = ()
    """Fields of a record that travel along in the prompt's ``meta``."""
    annotation: AnnotationFields = field(default_factory=AnnotationFields)

    def __post_init__(self) -> None:
        """Raises ValueError on limits that no item could meet."""
        for name in ("max_prompt_tokens", "max_response_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.max_item_tokens < 0:
            raise ValueError(f"max_item_tokens must be at least 0, found {self.max_item_tokens}")
