"""Which model a judge's actors hold: the same one on every node, told by its files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.judges.errors import JudgeError
from actors.pool import remote_call
from preference.types import content_id

_SAMPLE = 1 << 16
"""Bytes that are read at each of a weight file's sampled places."""


def model_identity(model: str) -> str:
    """Hash of what answers in a model directory, wherever it lies.

    Small files count whole, of weight files size, header and 16 places: enough to tell any two trainings apart
    without reading a hundred gigabytes.
    """
    wanted = ("config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")
    root = Path(model)
    parts = [(n, hashlib.sha256((root / n).read_bytes()).hexdigest()) for n in wanted if (root / n).is_file()]
    for path in sorted(root.glob("*.safetensors")):
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with path.open("rb") as file:
            for place in range(17):
                file.seek(place * max(size - _SAMPLE, 0) // 16)
                digest.update(file.read(_SAMPLE))
        parts.append((path.name, digest.hexdigest()))
    return content_id(parts)


@dataclass(frozen=True, slots=True)
class Started:
    """What a judge actor reports of itself."""

    pid: int
    identity: str
    refusal: str = ""
    """Why it cannot judge; empty: it can."""


class SameModel:
    """Readiness of a judge's actors: none refuses, and all of them hold the same model."""

    def __init__(self, name: str, model: str, seconds: float) -> None:
        self._name, self._model, self._seconds = name, model, seconds
        self.identity = ""
        """What they hold; empty before the first is up."""

    async def ready(self, index: int, actor: Any) -> None:
        """Wait for an actor's ``started``. Raises JudgeError where it refuses or holds another model."""
        who = f"judge {self._name} actor {index} (starting)"
        started: Started = await remote_call(actor.started.remote(), who=who, seconds=self._seconds)
        if started.refusal:
            raise JudgeError(started.refusal)
        if self.identity not in ("", started.identity):
            raise JudgeError(f"judge.model {self._model} is not the same model on every node: copy it anew to all")
        self.identity = started.identity
