"""Load a data file or an earlier run. Files are read and tokenised on the cluster, span by span."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.data.annotations import parse_argilla, parse_label_studio
from pipelines.data.containers import Span, records, spans
from pipelines.data.encode import Encoder, model_encoder
from pipelines.data.gather import Chunk, Items, gather
from pipelines.data.records import (
    Parsed,
    Record,
    detect,
    filled,
    parse_demonstration,
    parse_label,
    parse_preference,
)
from pipelines.data.report import Dropped, Kept, Outcome, Unfit
from pipelines.data.rules import DataError, DataRules, Format
from pipelines.data.runs import load_run


def load_items(
    path: str | Path,
    *,
    model_path: str,
    rules: DataRules | None = None,
    cpus: float = 1.0,
    prompts_path: str | Path | None = None,
) -> Items:
    """Items of a data file, or of an earlier run where ``path`` is its directory (``prompts_path``: its prompts).

    Files go through Ray Data, a span a task of ``cpus``; file and model have to be visible from every node. Raises
    DataError on a malformed record (naming file and place), and where no record is left.
    """
    rules, path = rules or DataRules(), Path(path)
    if path.is_dir():
        return load_run(path, model_path=model_path, prompts_path=prompts_path, rules=rules, cpus=cpus)
    import ray

    notes = model_encoder(model_path, rules).notes  # refuses an unusable model before any work
    parts = spans(path)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = (
        ray.data.from_items([{"number": i} for i in range(len(parts))], override_num_blocks=len(parts))
        .map_batches(
            _encode_task,
            fn_kwargs={"parts": parts, "model_path": model_path, "rules": rules},
            num_cpus=cpus,
            batch_size=None,
        )
        .take_all()
    )
    rows.sort(key=lambda row: int(row["number"]))
    return gather(str(path), (pickle.loads(row["chunk"]) for row in rows), notes)


def _encode_task(
    batch: dict[str, Any], parts: Sequence[Span], model_path: str, rules: DataRules
) -> dict[str, list[Any]]:
    """Ray Data stage: numbers of spans -> pickled chunks."""
    encoder = model_encoder(model_path, rules)
    numbers = [int(n) for n in batch["number"]]
    return {"number": numbers, "chunk": [pickle.dumps(encode_span(parts[n], encoder)) for n in numbers]}


def read_items(path: str | Path, encoder: Encoder) -> Items:
    """``load_items`` in this process, without Ray: for small files and for tests."""
    return gather(str(path), (encode_span(s, encoder) for s in spans(Path(path))), encoder.notes)


def encode_span(span: Span, encoder: Encoder) -> Chunk:
    """Parse and tokenise a span's records. A pure function of the span's bytes, the tokenizer and the rules."""
    rules = encoder.rules
    format: Format | None = None if rules.format == "auto" else rules.format
    outcomes: list[Outcome] = []
    seen = False
    try:
        for place, record in records(span):
            seen = True
            try:
                format = format or detect(record)
                item, changes = encoder.item(parse(filled(record), format, rules, encoder.chat))
                outcomes.append(Kept(place, item, changes))
            except Unfit as unfit:
                outcomes.append(Dropped(place, unfit.reason, unfit.detail))
            except ValueError as error:
                return Chunk(format, tuple(outcomes), f"{place}: {error}")
    except DataError as error:
        return Chunk(format, tuple(outcomes), str(error))
    return Chunk(format if seen else None, tuple(outcomes))


def parse(record: Record, format: Format, rules: DataRules, chat: bool) -> Parsed:
    """A record of a known format, still as text; raises ValueError or Unfit. ``chat``: as in ``parse_preference``."""
    match format:
        case "pairs":
            return parse_preference(record, rules, chat)
        case "labels":
            return parse_label(record, rules)
        case "sft":
            return parse_demonstration(record, rules)
        case "argilla":
            return parse_argilla(record, rules)
        case "label_studio":
            return parse_label_studio(record, rules)
        case "run":
            raise ValueError("a run is a directory, not a record")
