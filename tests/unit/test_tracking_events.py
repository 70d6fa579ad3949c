"""The log of what a run measured: round trip, torn and foreign lines, and what it comes to."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.tracking.events import (
    EVENTS,
    Answer,
    Began,
    DataFile,
    Ended,
    Evaluated,
    Event,
    EventLog,
    Exported,
    HeldOutLoss,
    Judged,
    Read,
    Stepped,
    Table,
    Tagged,
    clean,
    read_events,
)
from pipelines.tracking.history import Record
from preference.reports import PromptScores, StageTime
from preference.types import JudgeFailure, JudgeInfo, Message, Outcome, Rating, Verdict, Vote
from tests.factories import JUDGE
from tests.unit.test_plots import JUDGED

ALL: tuple[Event, ...] = (
    Began(1, 1000, {"run.steps": "3"}),
    Tagged(1, {"cluster.nodes": "1"}),
    Read((DataFile("train", "/t.jsonl", "ab", 5, "training"), DataFile("x", "/x.parquet", "cd", None, "heldout"))),
    Stepped(
        1, 2000, "0.1", {"loss": 0.5, "time/iteration": 4.0}, (StageTime("train", 1.0, 9),), {0: 3, 2: 1}, {"a": "h"}
    ),
    Stepped(2, 3000, "0.2", {"loss": 0.4, "time/iteration": 2.0}, (StageTime("train", 1.0, 9, 5.0, 6.0),), {0: 2}, {}),
    Judged(
        2,
        1,
        2000,
        3000,
        "p/0",
        "p",
        (Message("user", "why?"),),
        (Answer("p/0", "a", 1, "0.1"), Answer("p/1", "b", 1, "0.1")),
        (
            Verdict(
                "p/0", "p/1", Outcome.TIE, 0.5, JudgeInfo("human", "g"), votes=(Vote("annotator-1", "tie", 2, 3.5),)
            ),
            Rating("p/0", 0.25, JUDGE, "good"),
        ),
        (JudgeFailure(("p/0", "p/1"), Outcome.FAILED, "boom", JUDGE),),
        False,
        {"human": "HUMAN"},
    ),
    Table("samples/step-000001.json", '{"columns": [], "data": []}'),
    Evaluated(2, 4000, "0.2", {"eval/kl": 3.0}, (JUDGED,), "heldout", (PromptScores("h", (0.5,), (math.inf,)),)),
    HeldOutLoss(2, 4000, {"heldout/loss": 0.3}),
    Exported("/model", "demo", 2, {"rondo.config_hash": "abc"}),
    Ended(1, 5000, "KILLED"),
)


def written(directory: Path, *events: Event) -> Path:
    log = EventLog(directory)
    for event in events:
        log.append(event)
    log.close()
    return directory


def test_every_event_is_read_as_it_was_written(tmp_path: Path) -> None:
    written(tmp_path, *ALL)
    found = list(read_events(tmp_path))
    assert [type(e) for e in found] == [type(e) for e in ALL]
    # A stage that nobody timed has no place on a timeline: nan, which equals nothing.
    assert [repr(e) for e in found] == [repr(e) for e in ALL]
    assert len({e.key for e in ALL}) == len(ALL)


def test_what_a_run_measured_is_put_together(tmp_path: Path) -> None:
    record = Record.of(read_events(written(tmp_path, *ALL)), tables=True)
    assert record.history["loss"] == {1: 0.5, 2: 0.4}
    assert record.history["heldout/loss"] == {2: 0.3}
    assert record.ages == {0: 5, 2: 1}
    assert (record.steps, record.version, record.seconds) == (2, "0.2", 6.0)
    assert record.attempts[1].tags == {"run.steps": "3", "cluster.nodes": "1"}
    assert (record.attempts[1].status, record.attempts[1].ended_ms) == ("KILLED", 5000)
    assert record.judges == {"a": "h"}
    assert record.final("loss") == 0.4
    assert record.final("nothing") is None
    assert record.last_evaluation is not None
    assert list(record.tables) == ["samples/step-000001.json"]


def test_torn_damaged_and_foreign_lines_are_left_out_and_named(tmp_path: Path) -> None:
    written(tmp_path, ALL[0], ALL[3])
    with (tmp_path / EVENTS).open("ab") as lines:
        lines.write(b"not a record\n")
        lines.write(b"00000000.0 {}\n")
        lines.write(b'12345678.0 {"event": "step')  # the process died here
    warnings: list[str] = []
    assert [e.key for e in read_events(tmp_path, warnings.append)] == ["attempt 1", "step 1"]
    assert [w.partition("events.jsonl:")[2].partition(":")[0] for w in warnings] == ["3", "4"]
    log = EventLog(tmp_path)  # cuts off what was torn and goes on
    assert not log.append(ALL[3])
    assert log.append(ALL[4])
    log.close()
    assert [e.key for e in read_events(tmp_path)] == ["attempt 1", "step 1", "step 2"]


def test_a_directory_without_a_log_has_no_events(tmp_path: Path) -> None:
    assert list(read_events(tmp_path)) == []


@given(st.text() | st.text(st.characters(categories=["Cs", "Cc", "Cf"])))
def test_cleaned_text_can_be_stored_anywhere(text: str) -> None:
    shown = clean(text)
    assert "\0" not in shown
    assert shown.encode().decode() == shown
    assert clean(shown) == shown


@pytest.mark.parametrize("text", ["", "plain", "😀 ünï", "\u202e", "<script>"])
def test_what_can_be_stored_stays_as_it_is(text: str) -> None:
    assert clean(text) == text


def test_of_several_events_each_is_written_once_and_in_order(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    assert log.append(ALL[3], ALL[0], ALL[3])
    assert log.append(ALL[0], ALL[4])
    assert not log.append()
    log.close()
    assert [e.key for e in read_events(tmp_path)] == ["step 1", "attempt 1", "step 2"]
