"""Pairs of an online run as a file of text, for other tools and for `rondo offline` with another model."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.data.rules import DataError, DataRules
from pipelines.data.runs import load_run
from pipelines.ledger import read_record
from preference.types import Pair

_NO_LIMIT = 2**31


def write_pairs(run_dir: Path, out: Path) -> int:
    """One JSON line a trained pair, in the order of training: id, messages, both responses, margin. Returns how many.

    Raises DataError where ``run_dir`` is no run, or its prompts cannot be found.
    """
    record = read_record(run_dir)
    if record is None:
        raise DataError(f"{run_dir} holds no run")
    rules = DataRules(max_prompt_tokens=_NO_LIMIT, max_response_tokens=_NO_LIMIT)
    items = load_run(run_dir, model_path=record.fields["model.path"], prompts_path=None, rules=rules, cpus=1).items
    pairs = [item for item in items if isinstance(item, Pair)]
    with out.open("w", encoding="utf-8") as file:
        for pair in pairs:
            prompt = [{"role": m.role, "content": m.content} for m in pair.prompt.messages]
            answers = {
                side: [{"role": "assistant", "content": response.text}]
                for side, response in (("chosen", pair.chosen), ("rejected", pair.rejected))
            }
            line = {"id": pair.id, "prompt": prompt, **answers, "margin": round(pair.margin, 6)}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return len(pairs)
