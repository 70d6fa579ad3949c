"""One rank of real ZeRO-3 trainers under torchrun, without Ray: policies, then reward models, for the same start.

torchrun --nproc-per-node N -m tests.integration.workers DIRECTORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist

from tests.integration import reward_worker, zero_worker

if __name__ == "__main__":
    zero_worker.join_ranks()
    shared = Path(sys.argv[1])
    found = {}
    for module in (zero_worker, reward_worker):
        part = module.__name__.rpartition(".")[2]
        (shared / part).mkdir(exist_ok=True)
        found[part] = module.everything(shared / part)
    if dist.get_rank() == 0:
        (shared / "result.json").write_text(json.dumps(found))
    dist.barrier()
