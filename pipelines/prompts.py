"""Prompts: files are checked line by line, read and tokenised through Ray Data, drawn by a seeded permutation."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema import Model, Prompts
from pipelines.order import epoch_slice
from preference.types import Message, Prompt, content_id


class PromptError(Exception):
    """A prompt file cannot be used; the message names file, line and fix."""


def parse_line(line: str) -> tuple[str, tuple[Message, ...], str]:
    """One JSONL line -> (id, messages, meta as JSON). Raises ValueError saying what is wrong with the line."""
    try:
        record = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, found {type(record).__name__}")
    fields = dict(record)
    identifier = fields.pop("id", None)
    if isinstance(identifier, bool) or not isinstance(identifier, (str, int)) or identifier == "":
        raise ValueError('field "id" is missing or not a string')
    messages = fields.pop("messages", None)
    prompt = fields.pop("prompt", None)
    if (messages is None) == (prompt is None):
        raise ValueError('exactly one of "prompt" and "messages" is needed')
    if messages is None:
        messages = [{"role": "user", "content": prompt}]
    if not isinstance(messages, list) or not messages:
        raise ValueError('"messages" must be a non-empty list')
    parsed = []
    for m in messages:
        if not (isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)):
            raise ValueError('every message needs a string "role" and a string "content"')
        parsed.append(Message(m["role"], m["content"]))
    if not parsed[-1].content.strip():
        raise ValueError("the prompt is empty")
    if any(_halves(text) for text in (str(identifier), *(t for m in parsed for t in (m.role, m.content)))):
        raise ValueError("it holds half a surrogate pair, which no tokenizer encodes")
    return str(identifier), tuple(parsed), json.dumps(fields, sort_keys=True)


def _halves(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def check_file(path: str | Path) -> dict[str, str]:
    """Validate a prompt file without a cluster; returns {id: last message}. Raises PromptError with file and line."""
    path = Path(path)
    seen: dict[str, int] = {}
    texts: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:  # as Ray Data divides it
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    identifier, messages, _ = parse_line(line)
                except ValueError as error:
                    raise PromptError(f"{path}:{number}: {error}") from None
                if identifier in seen:
                    raise PromptError(f"{path}:{number}: id {identifier!r} was already used in line {seen[identifier]}")
                seen[identifier] = number
                texts[identifier] = messages[-1].content
    except OSError as error:
        raise PromptError(f"prompt file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise PromptError(f"prompt file {path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    if not seen:
        raise PromptError(f"prompt file {path} holds no prompts")
    return texts


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Tokenised prompts by id, and the ids of those left out as too long."""

    prompts: Mapping[str, Prompt]
    too_long: tuple[str, ...]

    def batch(self, step: int, size: int, seed: int) -> list[Prompt]:
        """The prompts of 1-based ``step``: consecutive slices of one seeded permutation an epoch.

        Where one epoch ends and the next begins, a prompt of both gives its second place to the next one in order: a
        request is told by step and prompt. ``size`` is less where there are fewer prompts.
        """
        ids = sorted(self.prompts)
        start, end = (step - 1) * size, step * size
        chosen = dict.fromkeys(epoch_slice(ids, start, end, seed))
        while len(chosen) < min(size, len(ids)):
            chosen |= dict.fromkeys(epoch_slice(ids, end, end + 1, seed))
            end += 1
        return [self.prompts[i] for i in chosen]


def heldout_ids(ids: Iterable[str], count: int, seed: int) -> list[str]:
    """``count`` of the held-out prompts, drawn by the seed: the same in a run, in its evaluations and in its arenas."""
    drawn = sorted(ids)
    random.Random(content_id("heldout", seed)).shuffle(drawn)
    return drawn[:count]


def _tokenize(batch: dict[str, np.ndarray[Any, Any]], model_path: str) -> dict[str, Any]:
    """Ray Data stage: lines of a prompt file -> ids, messages, meta and chat-template token ids."""
    tokenizer = load_tokenizer(model_path)
    out: dict[str, Any] = {"id": [], "messages": [], "meta": [], "token_ids": [], "path": batch["path"]}
    for line in batch["text"]:
        identifier, messages, meta = parse_line(str(line))
        turns = [{"role": m.role, "content": m.content} for m in messages]
        out["id"].append(identifier)
        out["messages"].append(json.dumps(turns))
        out["meta"].append(meta)
        out["token_ids"].append(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))
    return out


_PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")


@lru_cache(maxsize=1)
def load_tokenizer(model_path: str) -> Any:
    settings = json.loads((Path(model_path) / "tokenizer_config.json").read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") in _PLAIN and (Path(model_path) / "tokenizer.json").is_file():
        # What AutoTokenizer would come to as well, without importing torch and every model's configuration for it.
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(model_path)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path)


def load_prompts(paths: Sequence[str], model: Model, prompts: Prompts, cpus: float) -> list[PromptSet]:
    """Read and tokenise prompt files on the cluster, one set a file.

    Tasks take ``cpus`` / 2 each, so that two of Ray Data's stages can always run side by side; a file is one block,
    because a worker's imports cost far more than its prompts. Raises PromptError on too long prompts under
    ``too_long: stop``.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = (
        ray.data.read_text(
            list(paths), drop_empty_lines=True, include_paths=True, num_cpus=cpus / 2, override_num_blocks=1
        )
        .map_batches(_tokenize, fn_kwargs={"model_path": model.path}, num_cpus=cpus / 2, batch_size=None)
        .take_all()
    )
    return [_prompt_set(path, [r for r in rows if r["path"] == str(Path(path))], prompts) for path in paths]


def _prompt_set(path: str, rows: Sequence[Mapping[str, Any]], prompts: Prompts) -> PromptSet:
    loaded: dict[str, Prompt] = {}
    too_long: list[str] = []
    for row in rows:
        ids = tuple(int(t) for t in row["token_ids"])
        if len(ids) > prompts.max_tokens:
            too_long.append(f"{row['id']} ({len(ids)} tokens)")
            continue
        turns = tuple(Message(m["role"], m["content"]) for m in json.loads(row["messages"]))
        loaded[row["id"]] = Prompt(row["id"], turns, ids, row["meta"])
    if not loaded or (too_long and prompts.too_long == "stop"):
        raise PromptError(
            f"{path}: {len(too_long)} prompts are longer than prompts.max_tokens = {prompts.max_tokens}: "
            f"{', '.join(too_long[:10])}; raise prompts.max_tokens or set prompts.too_long=skip"
        )
    return PromptSet(loaded, tuple(too_long))


def overlapping(train: Mapping[str, str], heldout: Mapping[str, str]) -> list[str]:
    """Ids of held-out prompts whose id or text also stands in the training prompts."""
    texts: Sequence[str] = [t.strip().casefold() for t in train.values()]
    known = set(texts)
    return [i for i, text in heldout.items() if i in train or text.strip().casefold() in known]
