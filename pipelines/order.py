"""The order in which a run goes through its data: a seeded permutation an epoch, without state."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

from preference.types import content_id


def epoch_slice(ids: Sequence[str], start: int, end: int, seed: int) -> list[str]:
    """Positions ``start`` to ``end`` of an endless sequence that holds every id once an epoch, shuffled anew.

    A pure function of its arguments, so the cursor needs no state beyond the position.
    """
    known = tuple(ids)
    out = []
    for position in range(start, end):
        epoch, offset = divmod(position, len(known))
        out.append(_permutation(known, seed, epoch)[offset])
    return out


@lru_cache(maxsize=4)
def _permutation(ids: tuple[str, ...], seed: int, epoch: int) -> list[str]:
    order = list(ids)
    random.Random(content_id("prompts", seed, epoch)).shuffle(order)
    return order
