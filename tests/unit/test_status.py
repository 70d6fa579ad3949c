"""What a steps journal tells: the steps that the weights hold, what interruptions cost, what is under way."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipelines.cli import main
from pipelines.data import DataError
from pipelines.ledger.events import (
    AttemptBegan,
    AttemptEnded,
    Began,
    Event,
    PreparedStep,
    Survived,
    TrainedStep,
    event_record,
    history,
    read_event,
)
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.record import RunRecord, write_record
from pipelines.ledger.status import read_status, status
from preference.types import Fate
from tests.factories import judged
from tests.unit.audited import audited_run, edit_record


def steps(first: int, last: int, start: float, incarnation: int = 0, prepared: bool = True) -> list[Event]:
    """Steps of ten seconds each, from ``start``."""
    found: list[Event] = []
    for n, step in enumerate(range(first, last + 1)):
        if prepared:
            found.append(PreparedStep(step, (f"p{step}",), {Fate.TRAINED: 1}, start + 10 * n + 5))
        found.append(TrainedStep(step, f"{incarnation}.{step}", 0.5, start + 10 * n + 10))
    return found


KILLED = [
    AttemptBegan(1, "process 1", 0.0), Began(0, 0, 9, "", 100.0), *steps(1, 5, 100.0),  # reached step 5 at 150
    AttemptBegan(2, "process 2", 400.0), Began(1, 4, 9, "", 450.0),                    # killed; goes on from step 4
    *steps(5, 5, 450.0, 1, prepared=False), *steps(6, 7, 460.0, 1),                    # reaches step 5 again at 460
    Survived("sampler", "sampler actor 0 (poll): the actor died", 465.0),
    AttemptEnded("KILLED", "", 490.0),
]  # fmt: skip


def test_what_an_interruption_costs_is_the_time_until_the_state_is_reached_again():
    told = history(KILLED)
    assert told.done == 7
    assert told.replaced == 1
    assert told.setback_s == 460 - 150
    assert [(i.attempt, i.number, i.done, i.reached) for i in told.incarnations] == [(1, 0, 0, 5), (2, 1, 4, 7)]
    assert [(a.number, a.began, a.ended, a.why) for a in told.attempts] == [
        (1, 0.0, 150.0, "it did not say: killed, or the machine went down"),
        (2, 400.0, 490.0, "told to stop"),
    ]
    assert [f.stage for f in told.faults] == ["sampler"]
    assert told.trained[5].version == "1.5"


def test_weights_set_back_within_an_attempt_and_once_more_before_they_had_caught_up():
    again = [Began(2, 2, 9, "", 500.0), *steps(3, 3, 500.0, 2, prepared=False),
             Began(3, 2, 9, "", 600.0), *steps(3, 8, 600.0, 3, prepared=False)]  # fmt: skip
    told = history([*KILLED[:-1], *again])
    assert told.done == 8
    assert told.replaced == 1 + 5 + 1
    assert told.setback_s == (460 - 150) + (650 - 480)  # step 7 was there at 480, and again at 650
    assert [a.why for a in told.attempts][1] == ""  # goes on
    assert told.incarnations[1].why == "the weights had to be loaded anew"


def test_a_setback_that_is_not_made_up_for_counts_so_far():
    told = history([*KILLED[:7], Began(1, 0, 9, "", 200.0), *steps(1, 1, 200.0, 1, prepared=False)])
    assert told.done == 1
    assert told.setback_s == told.last - 120


@given(st.lists(st.integers(0, 4), max_size=6))
def test_the_present_weights_hold_every_step_once_whatever_was_set_back(losses):
    """After each batch of steps the weights fall back by some of them."""
    events: list[Event] = [Began(0, 0, 99, "", 0.0)]
    done, ever, now = 0, 0, 0.0
    for incarnation, loss in enumerate(losses):
        fresh = range(done + 1, done + 4)
        for step in fresh:
            now += 1
            if step > ever:
                events.append(PreparedStep(step, (f"p{step}",), None, now))
            events.append(TrainedStep(step, f"{incarnation}.{step}", 0.5, now))
        ever, done = max(ever, done + 3), max(done + 3 - loss, 0)
        events.append(Began(incarnation + 1, done, 99, "", now))
    told = history([read_event(json.loads(json.dumps(event_record(e)))) for e in events])
    assert sorted(told.trained) == list(range(1, done + 1))
    assert told.replaced == 3 * len(losses) - done
    assert told.setback_s >= 0
    assert set(told.prepared) == set(range(1, ever + 1))


# -- of a directory --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> Path:
    return audited_run(tmp_path / "root" / "run")


def test_a_run_that_was_killed_and_went_on(run):
    found = read_status(run)
    assert (found.state, found.owner, found.done, found.planned) == ("died", "", 3, 3)
    assert (found.items, found.version, found.replaced) == (12, "1.3", 1)
    assert found.fates == {"trained": 12}
    assert found.in_flight == ()
    assert found.judgements == 24
    assert list(found.checkpoints) == ["step-000002", "step-000003"]
    assert found.disk["ledger"] > 1000
    edit_record(run, finished=3)
    assert read_status(run).state == "finished"


def test_what_is_in_flight_and_waits_for_people(run):
    ledger = Ledger(run)
    ledger.judged(4, judged([0.1, 0.9], "x"))
    ledger.asked(4, judged([None, None], "y"))
    found = read_status(run)
    assert found.state == "running"
    assert f"process {os.getpid()}" in found.owner
    assert found.attempts[-1].why == "under way"
    assert [(s.step, s.prompts, s.complete) for s in found.in_flight] == [(4, 2, False)]
    assert found.waiting == {4: 1}
    ledger.waiting(4, [judged([None, None], "y")])
    ledger.prepared(4, ["a"], {Fate.TRAINED: 1, Fate.WAITING: 1})
    found = read_status(run)
    assert [(s.step, s.complete) for s in found.in_flight] == [(4, True)]
    assert found.fates == {"trained": 13, "waiting": 1}
    ledger.judged(5, judged([0.3, 0.4], "y"))
    ledger.prepared(5, ["b"], {Fate.TRAINED: 1})
    found = read_status(run)
    assert (found.waiting, found.fates) == ({}, {"trained": 14})  # its fate is the later step's
    ledger.close()


def test_the_command_prints_a_table_and_json(run):
    done = CliRunner().invoke(main, ["status", "run", "--root", str(run.parent)])
    assert done.exit_code == 0, done.output
    for words in ("died", "3 of 3, 12 items trained", "version 1.3", "12 trained", "attempt 2", "incarnation 1",
                  "steps 3 to 3", "1 steps trained again", "step-000003"):  # fmt: skip
        assert words in done.output
    done = CliRunner().invoke(main, ["status", str(run), "--json"])
    (found,) = json.loads(done.output)
    assert (found["state"], found["done"], found["waiting"]) == ("died", 3, {})


def test_a_directory_without_a_run_and_a_damaged_one_are_named(run, tmp_path):
    done = CliRunner().invoke(main, ["status", "nothing", "--root", str(tmp_path)])
    assert done.exit_code == 1
    assert f"{tmp_path}/nothing is not a run" in done.output
    path = run / "ledger" / "steps.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"step":2', b'"step":7', 1))
    with pytest.raises(DataError, match=r"steps\.jsonl:\d+: damaged record"):
        read_status(run)
    write_record(run, RunRecord("hash", {}, "", 1, 0))
    (run / "ledger" / "steps.jsonl").write_bytes(b"")
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    status(run, console)
    assert "0, 0 items trained" in console.export_text()
