"""The store of human labels: labels/s from 50 clients at once, latency, and what a kill -9 under load loses."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from sqlalchemy import select

from benchmarks.common import save
from pipelines.annotate.items import AnnotationItem, Shown, Task
from pipelines.annotate.serving import ServerProcess, address, listen, make_links
from pipelines.annotate.store import Store, sqlite_url
from pipelines.annotate.tables import labels, people
from preference.types import Message, content_id
from tests.annotators import Annotator

CLIENTS = 50
WORDS = 120  # of a response
TARGETS = {"labels_per_s": 500.0, "p99_ms": 200.0}


def item(number: int) -> AnnotationItem:
    texts = [" ".join(content_id(number, side, w)[:5] for w in range(WORDS)) for side in "ab"]
    prompt = Message("user", f"question {number}")
    return AnnotationItem((prompt,), tuple(Shown(f"{number}/{i}", t) for i, t in enumerate(texts)))


def filled(url: str, count: int) -> Store:
    store = Store(url)
    store.configure(Task("pairs", "Choose the better one.", gold_share=0.0), "benchmark", expecting=False)
    store.add([item(i) for i in range(count)], step=1)
    return store


def crowd(store: Store, base: str, count: int) -> list[tuple[str, str, int]]:
    """(address, code, seed) of each client."""
    names = [f"person {i}" for i in range(count)]
    store.add_people(names, "annotator")
    return [(base, url.partition("#")[2], i) for i, (_, url) in enumerate(make_links(store, base, names))]


def label(clients: list[tuple[str, str, int]], seconds: float, pipe: Any) -> None:
    """The clients, in a process of their own: they share no interpreter with what is measured."""

    async def work() -> list[Annotator]:
        people = [Annotator(*c) for c in clients]
        pipe.send("ready")
        end = time.monotonic() + seconds
        await asyncio.gather(*(p.work(lambda: time.monotonic() > end) for p in people))
        return people

    began, cpu = time.monotonic(), time.process_time()
    done = asyncio.run(work())
    elapsed = time.monotonic() - began
    pipe.send(
        {
            "seconds": elapsed,
            "confirmed": [(i, f"person {p.seed}") for p in done for i in p.acknowledged],
            "latencies": [x for p in done for x in p.latencies[1:]],  # the first opens the session
            "retries": sum(p.retries for p in done),
            "cpu": time.process_time() - cpu,
            "idle": sum(bool(p.reason) for p in done),
        }
    )


def stored(store: Store) -> list[tuple[str, str]]:
    query = select(labels.c.item, people.c.name).join(people, people.c.id == labels.c.person)
    return [(r[0], r[1]) for r in store.read(lambda db: db.execute(query).all())]


def measure(url: str, directory: Path, seconds: float, kills: int) -> dict[str, Any]:
    with filled(url, int(seconds * 3000)) as store:
        bound = listen("127.0.0.1", 0)
        server = ServerProcess(store.url, bound, directory / "server.log")
        try:
            asyncio.run(server.ready(60))
            clients = crowd(store, address(bound), CLIENTS)
            ours, theirs = get_context("spawn").Pipe()
            process = get_context("spawn").Process(target=label, args=(clients, seconds, theirs))
            process.start()
            theirs.close()
            ours.recv()
            before = psutil.Process(server.pid).cpu_times()
            for _ in range(kills):
                time.sleep(seconds / (kills + 1))
                assert server.pid is not None
                os.kill(server.pid, signal.SIGKILL)
                psutil.wait_procs([psutil.Process(server.pid)])
                server.keep_running()
            found: dict[str, Any] = ours.recv()
            process.join()
            cpu = psutil.Process(server.pid).cpu_times()
        finally:
            server.close()
        confirmed, kept = sorted(found["confirmed"]), sorted(stored(store))
    assert not found["idle"], "items ran out before the time did"
    milliseconds = sorted(1000 * x for x in found["latencies"])
    return {
        "labels": len(confirmed),
        "labels_per_s": round(len(confirmed) / found["seconds"], 1),
        "requests_per_s": round(len(milliseconds) / found["seconds"], 1),
        "p50_ms": round(statistics.median(milliseconds), 1),
        "p99_ms": round(milliseconds[int(0.99 * len(milliseconds))], 1),
        "client_cpu_ms_a_label": round(1000 * found["cpu"] / len(confirmed), 2),
        **(
            {}
            if kills
            else {"server_cpu_ms_a_label": round(1000 * (sum(cpu[:2]) - sum(before[:2])) / len(confirmed), 2)}
        ),
        "retries": found["retries"],
        "kills": kills,
        "lost": len(set(map(tuple, confirmed)) - set(kept)),
        "doubled": len(kept) - len(set(kept)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the clients label")
    parser.add_argument("--url", default="", help="an empty database; default: SQLite in a temporary directory")
    parser.add_argument(
        "--scratch", default=None, help="where the temporary directory lies: on the disk to be measured"
    )
    given = parser.parse_args()
    with TemporaryDirectory(prefix="rondo-bench-", dir=given.scratch) as scratch:
        steady = measure(given.url or sqlite_url(Path(scratch) / "steady.db"), Path(scratch), given.seconds, 0)
        print(f"undisturbed: {steady['labels_per_s']} labels/s, p99 {steady['p99_ms']} ms", file=sys.stderr)
        killed = {}
        if not given.url:
            killed = measure(sqlite_url(Path(scratch) / "killed.db"), Path(scratch), given.seconds, 2)
    save("human_store", {"clients": CLIENTS, "undisturbed": steady, "killed": killed})
    lost = [r for r in (steady, killed) if r and (r["lost"] or r["doubled"])]
    claims = {
        f">= {TARGETS['labels_per_s']:.0f} labels/s": steady["labels_per_s"] >= TARGETS["labels_per_s"],
        f"p99 < {TARGETS['p99_ms']:.0f} ms": steady["p99_ms"] < TARGETS["p99_ms"],
        "nothing lost or doubled": not lost,
    }
    print(json.dumps({"claims": claims}))


if __name__ == "__main__":
    main()
