"""Reward models: what `rondo reward-model` trains on, and what becomes of the exported directory.

Training is that of `rondo offline` (``pipelines.offline``), with a scalar head in the place of the output projection
(``preference.reward_model``). Here is what differs before and after: pairs are read to the end of the conversation, as
any user of the model will render them, and the result is saved as a sequence classifier of plain Transformers.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from configs.loading import ConfigError
from configs.runs import RewardModelConfig
from pipelines.data import DataRules, Items
from pipelines.data.encode import model_encoder
from pipelines.progress import Progress
from pipelines.prompts import load_tokenizer
from preference.batching import example
from preference.reward_model import readable
from preference.types import Pair, Response, Written

SCORE = "score.weight"
"""Name of the head's weight in every decoder's sequence classifier of Transformers."""


def conversations(loaded: Items, config: RewardModelConfig, progress: Progress) -> Items:
    """Pairs as a reward model reads them: each response to the end of its conversation, scored at the last token.

    Raises ConfigError for anything but pairs, and where none is left; says which do not fit.
    """
    source, room = loaded.report.source, config.batching.micro_batch_tokens
    if loaded.kind != "pairs":
        raise ConfigError(
            f"a reward model learns from pairs, but {source} holds {loaded.kind}: give a file with chosen and rejected"
        )
    encoder = model_encoder(config.model.path, DataRules())
    pad = padding_token(Path(config.model.path))

    def read(response: Response) -> Written:
        ids = readable(encoder.closed(response.token_ids), pad)
        return Written(response.id, response.prompt_id, ids, response.text, response.player)

    given = [i for i in loaded.items if isinstance(i, Pair)]
    pairs = [replace(i, chosen=read(i.chosen), rejected=read(i.rejected)) for i in given if not i.tied]
    whole = [p for p in pairs if all(r.token_ids for r in p.responses)]
    fitting = tuple(p for p in whole if example(p).tokens <= room)
    if lost := len(given) - len(pairs):
        progress.message(f"  {lost} of {len(given)} pairs are ties, of which a reward model learns nothing: left out")
    if lost := len(pairs) - len(whole):
        progress.message(f"  a response is nothing but padding in {lost} of {len(pairs)} pairs: left out")
    if lost := len(whole) - len(fitting):
        progress.message(
            f"  with the end of the conversation, these exceed batching.micro_batch_tokens = {room}: {lost} of "
            f"{len(pairs)} pairs; left out, raise it to {max(example(p).tokens for p in whole)}"
        )
    if not fitting:
        raise ConfigError(f"batching.micro_batch_tokens = {room}: no pair of {source} fits; raise it")
    return replace(loaded, items=fitting)


def padding_token(model: Path) -> int | None:
    """The padding token that a classifier made of ``model`` has; None where neither model nor tokenizer names one."""
    settings = json.loads((model / "config.json").read_text(encoding="utf-8"))
    known = settings.get("pad_token_id")
    tokenizers: int | None = load_tokenizer(str(model)).pad_token_id
    return tokenizers if known is None else int(known)


def classify(model: Path) -> None:
    """Make the configuration in the directory ``model`` that of a sequence classifier with one output, in place."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    file = model / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings |= {
        "architectures": [MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[settings["model_type"]]],
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
        "problem_type": "regression",  # or Transformers' pipeline would show the sigmoid of the score
        "pad_token_id": padding_token(model),
    }
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (model / "generation_config.json").unlink(missing_ok=True)
