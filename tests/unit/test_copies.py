"""A run copied to a directory and to an S3 bucket, and made anew from there on an empty disk."""

import shutil
import time
from dataclasses import replace

import pytest

from actors.files import FileSum
from configs.loading import validate
from configs.runs import RunConfig
from configs.schema import Checkpointing
from pipelines.ledger.checkpoints import checkpoint_dir, complete_checkpoints, damage
from pipelines.ledger.copies import Copies, open_copies
from pipelines.ledger.journal import Journal, LedgerError, read_lines
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.lock import Lease, Owners, owners
from pipelines.ledger.record import RunRecord, read_record, write_record
from pipelines.ledger.restore import FILES, PLACES, restore, restore_run
from pipelines.ledger.storage import open_storage
from tests.factories import judged, prompt
from tests.s3 import s3_server

RULES = Checkpointing(keep=2)
RECORD = RunRecord("hash", {"a": "1"}, "mlflow", 1, 3)


@pytest.fixture(scope="module")
def server():
    with s3_server("runs") as made:
        yield made


@pytest.fixture(params=["directory", "s3"])
def url(request, tmp_path, server, monkeypatch):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return str(tmp_path / "second") if request.param == "directory" else f"s3://runs/{time.monotonic_ns()}"


class Run:
    """A run directory whose steps and checkpoints are written by hand, and copied."""

    def __init__(self, run_dir, url, attempt=1, say=print):
        self.ledger = Ledger(run_dir, attempt)
        write_record(run_dir, replace(read_record(run_dir) or RECORD, attempts=attempt))
        (run_dir / "tracking").mkdir(exist_ok=True)
        self.events = Journal(run_dir / "tracking" / "events.jsonl")
        (run_dir / "config.yaml").write_text("run: {}")
        self.storage = open_storage(url, "run")
        lease = Lease(self.storage, self.ledger.lock.owner, 30, say)
        self.copies = Copies(self.ledger, self.storage, lease, RULES, say)

    def step(self, number, *, checkpoint=False):
        self.ledger.judged(number, judged([0.1, 0.7], f"p{number}"))
        self.ledger.prepared(number, [f"pair{number}"])
        self.events.append({"event": "stepped", "step": number})
        self.events.commit()
        (self.ledger.run_dir / "tracking" / "delivered.json").write_text(f"{number}")
        self.ledger.trained(number, f"0.{number}", 0.5)
        if checkpoint:
            partial = self.ledger.checkpoints.begin(number)
            for name in ("a", "b"):
                (partial / "trainer").mkdir(exist_ok=True)
                (partial / "trainer" / name).write_text(f"{name} of {number}")
            self.ledger.checkpoints.seal(
                partial, number, f"0.{number}", [FileSum.of(partial / "trainer" / "a", partial)], RULES
            )
            self.ledger.checkpoints.settle()
        return self

    def end(self):
        self.copies.close(60)
        self.ledger.close()


def journals(run_dir):
    return {name: (run_dir / name).read_bytes() for name in (*PLACES.values(), *FILES)}


def test_an_empty_disk_gets_everything_back_and_the_run_goes_on(tmp_path, url):
    here, there, third = (tmp_path / name for name in ("here", "there", "third"))
    run = Run(here, url)
    for number in range(1, 7):
        run.step(number, checkpoint=number % 2 == 0)
    run.end()
    assert not restore(open_storage(url, "another"), there, print)
    assert restore(run.storage, there, print)
    assert journals(there) == journals(here)
    assert read_record(there) == read_record(here)
    (found,) = complete_checkpoints(there)
    assert found == (6, checkpoint_dir(there, 6))
    assert damage(found[1]) == ""
    shutil.rmtree(here)

    again = Run(there, url, attempt=2)
    assert again.ledger.lock.token == 2
    assert again.ledger.checkpoints.newest(print) == (6, str(checkpoint_dir(there, 6)))
    assert set(again.ledger.replayable({f"p{n}": prompt(f"p{n}") for n in range(1, 7)})) == set(range(1, 7))
    again.step(7).step(8, checkpoint=True).end()
    assert restore(run.storage, third, print)
    assert journals(third) == journals(there)
    assert [line.record["step"] for line in read_lines(third / "ledger" / "steps.jsonl")] == sorted([*range(1, 9)] * 2)
    assert {k.split("/")[1] for k in run.storage.keys("checkpoints/")} == {"step-000006", "step-000008"}
    assert [o.attempt for o in owners(third)] == [0, 2]  # who restored it, and who had been there before


def test_a_damaged_copy_of_a_checkpoint_is_named_and_the_one_before_is_restored(tmp_path, url):
    run = Run(tmp_path / "here", url)
    run.step(1, checkpoint=True).step(2, checkpoint=True).end()
    key = next(k for k in run.storage.keys("checkpoints/step-000002") if k.endswith("trainer/b"))
    run.storage.put(key, b"b of 3")
    said = []
    restore(run.storage, tmp_path / "there", said.append)
    assert [s for s, _ in complete_checkpoints(tmp_path / "there")] == [1]
    assert any("step-000002 at" in s and "trainer/b has changed (checksum mismatch)" in s for s in said)


def test_a_checkpoint_without_its_mark_was_never_copied(tmp_path, url):
    run = Run(tmp_path / "here", url)
    run.step(1, checkpoint=True).step(2, checkpoint=True).end()
    run.storage.delete([k for k in run.storage.keys("checkpoints/step-000002") if k.endswith("complete.json")])
    restore(run.storage, tmp_path / "there", print)
    assert [s for s, _ in complete_checkpoints(tmp_path / "there")] == [1]


def test_what_a_dead_owner_copies_late_does_not_count(tmp_path, url):
    first = Run(tmp_path / "here", url)
    first.step(1)
    first.copies.close(60)
    restore(first.storage, tmp_path / "there", print)
    second = Run(tmp_path / "there", url, attempt=2)
    second.step(2).end()
    size = (tmp_path / "there" / "ledger" / "steps.jsonl").stat().st_size
    for start in (size - 40, 99999):  # sent off before it was declared dead, and slow to arrive
        first.storage.put(f"ledger/steps/000001-{start:015d}", b"late")
    restore(first.storage, tmp_path / "third", print)
    assert journals(tmp_path / "third") == journals(tmp_path / "there")
    first.storage.put(f"ledger/steps/000003-{99999:015d}", b"")  # of an owner whose first pieces are not there
    with pytest.raises(LedgerError, match="journal steps lacks its bytes from"):
        restore(first.storage, tmp_path / "fourth", print)
    first.ledger.close()


def test_a_busy_server_holds_up_copies_only_and_is_told_of_once(tmp_path, server, monkeypatch):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pipelines.ledger.storage._ATTEMPTS", 1)
    monkeypatch.setattr("pipelines.ledger.copies._PAUSES", (0.05,))
    said = []
    run = Run(tmp_path / "here", "s3://runs/busy", say=said.append)
    server.refuse = lambda method, path: method == "PUT"
    run.step(1, checkpoint=True)
    deadline = time.monotonic() + 30
    while not said and time.monotonic() < deadline:
        time.sleep(0.01)
    run.step(2, checkpoint=True)  # nothing waits
    server.refuse = lambda method, path: False
    run.end()
    assert sum("the run goes on, and they are tried again" in s for s in said) == 1
    assert any("up to date again" in s for s in said)
    assert any("requests repeated" in s and "throttled" in s for s in said)
    restore(run.storage, tmp_path / "there", print)
    assert journals(tmp_path / "there") == journals(tmp_path / "here")


def test_a_copy_that_cannot_be_finished_is_said_loudly(tmp_path, server, monkeypatch):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pipelines.ledger.storage._ATTEMPTS", 1)
    monkeypatch.setattr("pipelines.ledger.copies._PAUSES", (0.05,))
    said = []
    run = Run(tmp_path / "here", "s3://runs/dead", say=said.append)
    server.refuse = lambda method, path: method == "PUT"
    try:
        run.step(1)
        run.copies.close(0.3)
    finally:
        server.refuse = lambda method, path: False
    run.ledger.close()
    assert any(s.startswith("THE COPY AT s3://runs/dead/run IS INCOMPLETE") for s in said)


def test_another_owner_of_the_copy_stops_this_one(tmp_path, url):
    run = Run(tmp_path / "here", url)
    run.step(1)
    Owners(run.storage).claim(replace(run.ledger.lock.owner, token=5, host="elsewhere"))
    with pytest.raises(LedgerError, match="taken over by"):
        run.copies.copy()
    with pytest.raises(LedgerError, match="on elsewhere"):
        run.ledger.trained(2, "0.2", 0.4)
    run.end()


def config(root, storage):
    return validate(
        RunConfig,
        {
            "run": {"name": "run", "root": str(root)}, "model": {"path": "/m"},
            "judge": {"kind": "rule", "rule": "a:b"},
            "prompts": {"train": "/t", "heldout": "/h"}, "checkpoint": {"storage": storage},
        },
    )  # fmt: skip


def test_a_new_run_does_not_take_the_place_of_a_copied_one(tmp_path, url):
    Run(tmp_path / "here" / "run", url).step(1).end()
    with pytest.raises(LedgerError, match=r"holds a run of this name; go on with --resume=auto, which restores it"):
        restore_run(config(tmp_path / "there", url), "never", print)
    assert not (tmp_path / "there").exists()
    restore_run(config(tmp_path / "there", url), "auto", print)
    assert read_record(tmp_path / "there" / "run") == RECORD
    restore_run(config(tmp_path / "there", url), "auto", print)  # it is there: nothing happens
    assert open_copies(config(tmp_path / "there", ""), Ledger(tmp_path / "x"), print) is None


def test_a_restoration_that_was_broken_off_begins_again(tmp_path, url, monkeypatch):
    run = Run(tmp_path / "here", url)
    run.step(1, checkpoint=True).end()
    there = tmp_path / "there"
    monkeypatch.setattr(
        "pipelines.ledger.restore._restore_checkpoint", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        restore(run.storage, there, print)
    assert read_record(there) is None
    monkeypatch.undo()
    assert restore(run.storage, there, print)
    assert journals(there) == journals(tmp_path / "here")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(LedgerError, match="exists and is not a run"):
        restore(run.storage, other, print)
