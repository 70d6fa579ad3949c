"""Processes of a gloo group, forked from one that has imported everything: half of what ranks cost is imports."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing import connection
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist

from actors.imports import operators_of_this_environment


def in_ranks(counts: Sequence[int], work: Callable[[Path], None], directory: Path) -> None:
    """``work(directory)`` in each rank of a group of every size, all groups at once; one failure ends all."""
    fork = multiprocessing.get_context("fork")
    started = []
    for count in counts:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        started += [fork.Process(target=_rank, args=(rank, count, port, work, directory)) for rank in range(count)]
    for process in started:
        process.start()
    waiting = {process.sentinel: process for process in started}
    while waiting:
        for sentinel in connection.wait(list(waiting)):
            process = waiting.pop(int(sentinel))  # type: ignore[arg-type]
            process.join()
            if process.exitcode:
                for other in waiting.values():  # it may be waiting for the one that failed
                    other.kill()
                sys.exit(1)


def _rank(rank: int, count: int, port: int, work: Callable[[Path], None], directory: Path) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({k: str(v) for k, v in place.items()}, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    operators_of_this_environment()
    deepspeed.init_distributed("gloo")
    torch.set_num_threads(1)
    work(directory)
    dist.barrier()
