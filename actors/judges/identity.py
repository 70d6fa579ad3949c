"""Which model a judge's actors hold: the same one on every node, told by its files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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


async def common_identity(name: str, model: str, actors: Sequence[Any], seconds: float) -> str:
    """Wait for every actor's ``started``; what they all hold. Raises JudgeError where one refuses or they differ."""
    identities = set()
    for i, actor in enumerate(actors):
        started: Started = await remote_call(
            actor.started.remote(), who=f"judge {name} actor {i} (starting)", seconds=seconds
        )
        if started.refusal:
            raise JudgeError(started.refusal)
        identities.add(started.identity)
    if len(identities) > 1:
        raise JudgeError(f"judge.model {model} is not the same model on every node: copy it anew to all")
    (identity,) = identities
    return identity
