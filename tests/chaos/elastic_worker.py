"""Trainers that go on from another number of ranks: run by test_elastic.py.

python -m tests.chaos.elastic_worker DIRECTORY: what they found goes to ``DIRECTORY/result-<ranks>.json``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from actors.commands import Checkpoint, Publish, Train
from actors.trainer import ZeroTrainer
from actors.weights import WeightFiles
from configs.schema import LoRA
from pipelines.export import _checkpoint_weights
from preference.batching import mismatched_examples
from preference.types import Version
from tests.integration.zero_worker import command, pairs, trainer, written
from tests.ranks import in_ranks

WRITERS, READERS = 2, (1, 3)
CASES: dict[str, dict[str, Any]] = {
    "dpo": {},
    "qwen3": {"arch": "qwen3"},
    "kto": {"objective": "kto"},
    "bco": {"objective": "bco"},
    "beta_dpo": {"objective": "beta_dpo"},
    "lora": {"lora": LoRA(rank=3)},  # adapters whose rows no number of ranks divides evenly
    "bf16": {"dtype": "bfloat16"},
    "dropout": {"lora": LoRA(rank=3, dropout=0.3)},
}


def make(directory: Path, case: str, checkpoint: str = "") -> ZeroTrainer:
    knobs = dict(CASES[case])
    arch = knobs.pop("arch", "llama")
    return trainer(written(directory / arch, arch), knobs.pop("objective", "dpo"), checkpoint=checkpoint, **knobs)


def train(zero: ZeroTrainer, case: str, steps: range) -> list[float]:
    scored = pairs()
    others: Any = ()
    if case == "kto":
        found = mismatched_examples([s.item for s in scored])
        others = [tuple(np.full(len(r), -6.0, np.float32) for r in e.responses) for e in found]
    done = [zero.execute(command(Train, scored, 64, others, step=s, waiting=0.0)) for s in steps]
    return [d.metrics.loss for d in done] + [d.metrics.grad_norm for d in done]


def apart(checkpoint: Path, published: Path, scale: float, dtype: str) -> float:
    """How far what a checkpoint exports is from what samplers were given at the same step."""
    exported = dict(_checkpoint_weights(checkpoint, dtype, scale))
    state = dict(WeightFiles.open(published))
    assert set(exported) == set(state)
    return max(float((exported[n] - state[n]).abs().max()) for n in state)


def write(directory: Path) -> dict[str, Any]:
    """A step, a checkpoint, two more steps."""
    result: dict[str, Any] = {}
    for case in CASES:
        knobs = CASES[case]
        zero = make(directory, case)
        train(zero, case, range(1, 2))
        checkpoint, out = directory / "checkpoints" / case, directory / "published" / case
        started = time.monotonic()
        done = zero.execute(Checkpoint(1, str(checkpoint)))
        assert not done.error
        zero.execute(Publish(Version(0, 1), str(out)))
        dist.barrier()
        result[case] = {
            "seconds": time.monotonic() - started,
            "following": train(zero, case, range(2, 4)),
            "files": {f.path: f.bytes for f in done.files},
            "apart": apart(
                checkpoint, out, 32 / knobs["lora"].rank if "lora" in knobs else 0.0, knobs.get("dtype", "float32")
            ),
        }
    refused = make(directory, "dpo").execute(Checkpoint(1, "/proc/nowhere"))
    result["refused"] = refused.error
    return result


def go_on(directory: Path) -> dict[str, Any]:
    """The same two more steps, from the other number of ranks' checkpoint; and once more from one's own."""
    result: dict[str, Any] = {}
    ranks = dist.get_world_size()
    for case in CASES:
        zero = make(directory, case, str(directory / "checkpoints" / case))
        again = directory / f"again-{ranks}" / case
        zero.execute(Checkpoint(1, str(again)))
        back = directory / f"back-{ranks}" / case
        zero.execute(Publish(Version(0, 1), str(back)))
        dist.barrier()
        one, other = (dict(WeightFiles.open(p)) for p in (back, directory / "published" / case))
        result[case] = {
            "following": train(zero, case, range(2, 4)),
            "weights": all(torch.equal(one[n], other[n]) for n in other) and set(one) == set(other),
            "rewritten": train(make(directory, case, str(again)), case, range(2, 4)),
        }
    try:
        make(directory, "qwen3", str(directory / "checkpoints" / "lora"))
    except ValueError as error:
        result["refused"] = str(error)
    return result


def found(directory: Path) -> None:
    ranks = dist.get_world_size()
    results = write(directory) if ranks == WRITERS else go_on(directory)
    if dist.get_rank() == 0:
        (directory / f"result-{ranks}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    for together in ((WRITERS,), READERS):
        in_ranks(together, found, Path(sys.argv[1]))
