"""What an online run was trained on as a file of text, for other tools and for `rondo offline` with another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.data.rules import DataError, DataRules
from pipelines.data.runs import load_run
from pipelines.ledger.ledger import read_record
from preference.types import Item, Pair, Response

_NO_LIMIT = 2**31


def write_pairs(run_dir: Path, out: Path) -> int:
    """One JSON line a trained item (pair, or labelled response), in the order of training. Returns how many.

    Raises DataError where ``run_dir`` is no run, or its prompts cannot be found.
    """
    record = read_record(run_dir)
    if record is None:
        raise DataError(f"{run_dir} holds no run")
    rules = DataRules(max_prompt_tokens=_NO_LIMIT, max_response_tokens=_NO_LIMIT)
    items = load_run(run_dir, model_path=record.fields["model.path"], prompts_path=None, rules=rules, cpus=1).items
    with out.open("w", encoding="utf-8") as file:
        for item in items:
            file.write(json.dumps(item_line(item), ensure_ascii=False) + "\n")
    return len(items)


def item_line(item: Item) -> dict[str, Any]:
    """A record as `rondo offline` reads it; what a plain preference takes for granted is left out."""
    prompt = [{"role": m.role, "content": m.content} for m in item.prompt.messages]
    line: dict[str, Any] = {"id": item.id, "prompt": prompt}
    if not isinstance(item, Pair):
        return line | {"completion": _turn(item.response), "label": item.desirable}
    line |= {"chosen": _turn(item.chosen), "rejected": _turn(item.rejected), "margin": round(item.margin, 6)}
    if item.tied:
        return line | {"tied": True}
    return line if item.probability == 1 else line | {"probability": round(item.probability, 6)}


def _turn(response: Response) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": response.text}]
