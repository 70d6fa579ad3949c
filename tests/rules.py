"""Rules for tests: total, deterministic, with few ties on random text."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from preference.types import Prompt


def vowels(prompt: Prompt, responses: Sequence[str]) -> list[float]:
    """Share of vowels: what a random model's texts differ in. Hangs at the prompt that RONDO_TEST_HOLD names."""
    if prompt.id == os.environ.get("RONDO_TEST_HOLD"):
        threading.Event().wait()
    return [sum(c in "aeiou" for c in r.lower()) / max(len(r), 1) for r in responses]


def long(prompt: Prompt, responses: Sequence[str]) -> list[float]:
    return [float(len(r)) for r in responses]


def short(prompt: Prompt, responses: Sequence[str]) -> list[float]:
    return [-float(len(r)) for r in responses]


def raises(prompt: Prompt, responses: Sequence[str]) -> list[float]:
    raise RuntimeError("this rule always fails")
