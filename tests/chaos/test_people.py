"""People in the whole loop, two at once, whose answers come late: nothing is lost and nothing asked twice."""

from __future__ import annotations

import os
import subprocess
import threading
from collections import Counter

import httpx
import pytest

from tests.integration.conftest import BIN, ROOT, TINY, journal, links, losses, pairs


@pytest.fixture(scope="module")
def started(head, overrides, tmp_path_factory):
    """Starts the tiny configuration on the session's cluster; gives the process and its directory."""
    running = []

    def start(name, *more):
        words = [str(BIN / "rondo"), "run", str(TINY), *overrides(name, *more)]
        root = next(w.partition("=")[2] for w in words if w.startswith("run.root="))
        env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_ADDRESS": head.address}
        process = subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        )
        running.append(process)
        return process, tmp_path_factory.getbasetemp() / root / name

    yield start
    for process in running:
        process.kill()
        process.wait()


class Person:
    """An annotator's browser without the browser: prefers the longer answer, until there is nothing more."""

    def __init__(self, url: str) -> None:
        base, _, code = url.partition("#")
        self.http = httpx.Client(base_url=base)
        session = self.http.post("/api/session", json={"code": code}).raise_for_status().json()
        self.http.headers["X-CSRF-Token"] = session["csrf"]
        self.items: list[str] = []
        self.written = 0

    def work(self, until: threading.Event, write_first: str = "") -> None:
        while not until.is_set():
            try:
                item = self.http.post("/api/next").json().get("item")
                if item is None:
                    until.wait(0.2)  # people look again; the run decides when it is over
                    continue
                verdict = "left" if len(item["left"]) >= len(item["right"]) else "right"
                answer = {"item": item["id"], "verdict": verdict}
                if write_first and not self.written:
                    answer["written"] = write_first
                    self.written = 1
                self.http.post("/api/label", json=answer).raise_for_status()
                self.items.append(item["id"])
            except httpx.TransportError:  # the run is over, and its page with it
                return


def test_people_judge_while_the_loop_waits_and_late_answers_feed_later_batches(started):
    human = "judge={kind: human, port: 0, quorum: 0.5, annotators: [ada, bo]}"
    process, directory = started(
        "people", human, "run.steps=3", "sampling.candidates=2", "evaluation.prompts=2", "evaluation.probe=0",
        "pairing.strategy=random",
    )  # fmt: skip
    over = threading.Event()
    people = [Person(url) for url in links(process).values()]
    assert len(people) == 2
    hands = [
        threading.Thread(target=p.work, args=(over, "A better answer." if i == 0 else "")) for i, p in enumerate(people)
    ]
    for hand in hands:
        hand.start()
    rest = process.communicate(timeout=300)[0]
    over.set()
    for hand in hands:
        hand.join()
    assert process.returncode == 0, rest[-3000:]
    records = journal(directory, "judgements")
    decided = [r for r in records if r["state"] == "decided"]
    sampled = {r["group"] for r in records}
    # Every prompt that was sampled is decided once, or still waits.
    assert len(sampled) == 3 * 4
    assert max(Counter(r["group"] for r in decided).values()) == 1
    undecided = sampled - {r["group"] for r in decided}
    assert all(r["state"] == "waiting" for r in records if r["group"] in undecided)
    for step in (1, 2, 3):
        here = [r for r in decided if r["step"] == step]
        fresh = {r["group"] for r in records if r["step"] == step} - {
            r["group"] for r in records if r["step"] < step and r["state"] == "waiting"
        }
        assert len(fresh) == 4
        settled = {r["group"] for r in here}
        late = {r["group"] for r in decided if r["step"] > step} | undecided
        assert len(settled & fresh) + len(late & fresh) == 4
        assert losses(directory)[step] is not None
    everything = [i for p in people for i in p.items]
    assert len(everything) == len(set(everything))  # nobody was asked what somebody else had answered
    trained = [i for ids in pairs(directory).values() for i in ids]
    assert len(trained) == len(set(trained))
    written = [r for r in journal(directory, "candidates") if r.get("player") == "human"]
    assert [w["text"] for w in written] == ["A better answer."]
