"""Files of records, cut into spans that can be read independently: JSONL by bytes, Parquet by row groups, JSON whole.

A record's place is its line (JSONL), its 1-based position in the array (JSON) or its row (Parquet).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.data.rules import DataError

Container = Literal["jsonl", "json", "parquet"]
_SUFFIXES: dict[str, Container] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
SPAN_BYTES = 8 * 2**20  # one task's share of a JSONL file
SPAN_ROWS = 10_000  # of a Parquet file, in whole row groups
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a file: bytes [start, stop) of JSONL, row groups [start, stop) of Parquet, all of a JSON array."""

    path: str
    container: Container
    start: int
    stop: int
    first: int
    """Place of its first record."""


def spans(path: Path, size: int = SPAN_BYTES) -> list[Span]:
    """Cut a file; raises DataError where there is no such file, or its suffix is unknown."""
    container = _SUFFIXES.get(path.suffix.lower())
    if container is None:
        raise DataError(f"{path}: the suffix must be one of {', '.join(_SUFFIXES)}")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty")
        if container == "jsonl":
            return list(_line_spans(path, size))
        if container == "parquet":
            return list(_row_spans(path))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    return [Span(str(path), container, 0, path.stat().st_size, 1)]


def records(span: Span) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of a span; raises DataError naming the place of what is no JSON object."""
    match span.container:
        case "jsonl":
            yield from _lines(span)
        case "json":
            yield from _array(span)
        case "parquet":
            yield from _rows(span)


def _line_spans(path: Path, size: int) -> Iterator[Span]:
    start, first = 0, 1
    with path.open("rb") as file:
        while chunk := file.read(size):
            chunk += file.readline()
            yield Span(str(path), "jsonl", start, start + len(chunk), first)
            start += len(chunk)
            first += chunk.count(b"\n")


def _lines(span: Span) -> Iterator[tuple[str, dict[str, Any]]]:
    with Path(span.path).open("rb") as file:
        file.seek(span.start)
        data = file.read(span.stop - span.start)
    if span.start == 0:
        data = data.removeprefix(_BOM)
    for number, line in enumerate(data.split(b"\n"), start=span.first):
        if line.strip():
            place = f"{span.path}:{number}"
            yield place, _object(_decode(line, place), place)


def _array(span: Span) -> Iterator[tuple[str, dict[str, Any]]]:
    found = _decode(Path(span.path).read_bytes().removeprefix(_BOM), span.path)
    if not isinstance(found, list):
        raise DataError(
            f"{span.path}: expected a JSON array of records, found {type(found).__name__}; a file with one record a "
            f"line is named .jsonl"
        )
    for number, record in enumerate(found, start=span.first):
        place = f"{span.path}: record {number}"
        yield place, _object(record, place)


def _decode(text: bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if b"\n" in text.strip() else f"column {error.colno}"
        hint = "; a file with one record a line is named .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{place}: not JSON: {error.msg} at {where}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}") from None


def _object(record: Any, place: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(f"{place}: expected a JSON object, found {type(record).__name__}")
    return record


def _parquet(path: str) -> Any:
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    with _read_as_parquet(path):
        return pq.ParquetFile(path)


@contextmanager
def _read_as_parquet(path: str) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is not a Parquet file, or a damaged one: {error}") from None


def _row_spans(path: Path) -> Iterator[Span]:
    file = _parquet(str(path))
    start, first, rows = 0, 1, 0
    groups = file.metadata.num_row_groups
    for group in range(groups):
        rows += file.metadata.row_group(group).num_rows
        if rows >= SPAN_ROWS or group == groups - 1:
            yield Span(str(path), "parquet", start, group + 1, first)
            start, first, rows = group + 1, first + rows, 0


def _rows(span: Span) -> Iterator[tuple[str, dict[str, Any]]]:
    file, number = _parquet(span.path), span.first
    batches = file.iter_batches(batch_size=1000, row_groups=list(range(span.start, span.stop)))
    while True:
        with _read_as_parquet(span.path):
            batch = next(batches, None)
            found = [] if batch is None else batch.to_pylist()
        if batch is None:
            return
        for record in found:
            yield f"{span.path}: row {number}", record
            number += 1
