"""Spans of a source -> its items: one format, one kind, no duplicates; and the split into train and held-out."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipelines.data.report import Dropped, Kept, LoadReport, Outcome, Reason
from pipelines.data.rules import DataError, Format
from preference.types import Candidate, Item, Labelled, Pair, Prompt, Response, content_id


@dataclass(frozen=True, slots=True)
class Items:
    """What training takes from one source, in the source's order; all of one kind."""

    items: tuple[Item, ...]
    kind: Literal["pairs", "labels"]
    report: LoadReport


@dataclass(frozen=True, slots=True)
class Chunk:
    """The outcomes of one span, up to its first malformed record."""

    format: Format | None
    """None where the span holds no record."""
    outcomes: tuple[Outcome, ...]
    error: str = ""


def gather(source: str, chunks: Iterable[Chunk], notes: tuple[str, ...] = ()) -> Items:
    """Put spans together: one format, one kind, no duplicates, unique ids."""
    outcomes: list[Outcome] = []
    format: Format | None = None
    for chunk in chunks:
        if format and chunk.format and chunk.format != format:
            where = chunk.outcomes[0].place if chunk.outcomes else chunk.error
            raise DataError(f"{where}: records of format {chunk.format} after records of format {format}; set format")
        format = format or chunk.format
        if chunk.error:
            raise DataError(chunk.error)
        outcomes += chunk.outcomes
    if format is None or not outcomes:
        raise DataError(f"{source} holds no records")
    checked = _unique(outcomes)
    report = LoadReport.of(source, format, checked, notes)
    return finish([o for o in checked if isinstance(o, Kept)], report)


def finish(kept: Sequence[Kept], report: LoadReport) -> Items:
    """Items of one kind with their report; raises DataError where the kinds are mixed or nothing is left."""
    if not kept:
        raise DataError("no record can be used:\n" + "\n".join(report.lines()))
    first = kept[0]
    for other in kept:
        if type(other.item) is not type(first.item):
            raise DataError(
                f"{other.place} holds a {_kind(other.item)}, {first.place} a {_kind(first.item)}: "
                f"one file holds one kind; split it"
            )
    share = _Shared()
    items = tuple(share.item(k.item) for k in kept)
    return Items(items, "pairs" if isinstance(first.item, Pair) else "labels", report)


def _kind(item: Item) -> str:
    return "preference" if isinstance(item, Pair) else "label"


def _unique(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Later copies become duplicates; raises DataError where different items have one id."""
    places: dict[tuple[str, ...], str] = {}
    ids: dict[str, str] = {}
    out: list[Outcome] = []
    for outcome in outcomes:
        if isinstance(outcome, Dropped):
            out.append(outcome)
            continue
        item = outcome.item
        wanted = str(item.desirable) if isinstance(item, Labelled) else ""
        content = (item.prompt.id, wanted, *(r.id for r in item.responses))
        if content in places:
            out.append(Dropped(outcome.place, Reason.DUPLICATE, f"of {places[content]}"))
            continue
        if item.id in ids:
            raise DataError(
                f'{outcome.place}: id "{item.id}" was already used in {ids[item.id]} for something else; make the '
                f"ids unique, or leave the field out to have them derived from the content"
            )
        places[content] = ids[item.id] = outcome.place
        out.append(outcome)
    return out


class _Shared:
    """Items whose token ids are one object a value: 8 bytes a token instead of 36, which counts in the millions."""

    def __init__(self) -> None:
        self._ints: dict[int, int] = {}
        self._prompts: dict[tuple[str, int], Prompt] = {}

    def item(self, item: Item) -> Item:
        # A prompt that was cut to fit its response differs from the same prompt uncut.
        prompt = self._prompts.setdefault(
            (item.prompt.id, len(item.prompt.token_ids)),
            replace(item.prompt, token_ids=self._ids(item.prompt.token_ids)),
        )
        if item.prompt.meta != prompt.meta:
            prompt = replace(prompt, meta=item.prompt.meta)
        if isinstance(item, Pair):
            return replace(
                item, prompt=prompt, chosen=self._response(item.chosen), rejected=self._response(item.rejected)
            )
        return replace(item, prompt=prompt, response=self._response(item.response))

    def _response(self, response: Response) -> Response:
        if isinstance(response, Candidate):
            return response
        return replace(response, token_ids=self._ids(response.token_ids))

    def _ids(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(map(self._ints.setdefault, ids, ids))


def split(items: Sequence[Item], heldout: float, seed: int) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """(train, held-out): a seeded ``heldout`` share of the prompts with all of their items, both in order.

    The split goes by prompt, so that no held-out prompt was trained on with other responses. Raises ValueError where
    one side would be empty though both are wanted.
    """
    if not 0 <= heldout < 1:
        raise ValueError(f"the held-out share must be at least 0 and below 1, found {heldout}")
    if heldout == 0:
        return tuple(items), ()
    prompts = sorted({i.prompt.id for i in items})
    count = round(heldout * len(prompts))
    if not 0 < count < len(prompts):
        raise ValueError(f"{heldout:g} of {len(prompts)} prompts is {count}: one side of the split would be empty")
    random.Random(content_id("split", seed)).shuffle(prompts)
    apart = set(prompts[:count])
    return (
        tuple(i for i in items if i.prompt.id not in apart),
        tuple(i for i in items if i.prompt.id in apart),
    )
