"""Real ZeRO-3 trainers without Ray, as one rank and as two side by side: policies, then reward models.

python -m tests.integration.workers DIRECTORY: what they found goes to ``DIRECTORY/result-<ranks>.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist

from tests.integration import reward_worker, zero_worker
from tests.ranks import in_ranks

COUNTS = (1, 2)


def found(directory: Path) -> None:
    results = {}
    for module in (zero_worker, reward_worker):
        part = module.__name__.rpartition(".")[2]
        shared = directory / f"{part}-{dist.get_world_size()}"
        shared.mkdir(exist_ok=True)
        results[part] = module.everything(shared)
    if dist.get_rank() == 0:
        (directory / f"result-{dist.get_world_size()}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    in_ranks(COUNTS, found, Path(sys.argv[1]))
