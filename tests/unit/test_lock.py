"""Who owns a run: two never do, stale owners are recognised, and what they still write does not count."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from pipelines.ledger import lock as module
from pipelines.ledger.journal import Journal, LedgerError, decode, decode_line, encode_line, read_lines
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.lock import Owners, RunLock, owner_of, owners, this_process
from pipelines.ledger.storage import DirectoryStorage


def leave(run_dir, **changes):
    """The record of an owner that never gave the run back, last heard of ``silent`` seconds ago."""
    silent = changes.pop("silent", 0.0)
    owner = replace(this_process(1), **{"token": 1, **changes})
    path = run_dir / "owners" / f"{owner.token:06d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(owner)))
    now = time.time()
    os.utime(path, (now - silent, now - silent))
    return owner


def test_tokens_grow_and_owners_are_remembered(tmp_path):
    tokens = []
    for attempt in (1, 2, 3):
        lock = RunLock(tmp_path, attempt)
        assert owner_of(tmp_path) is not None
        tokens.append(lock.token)
        lock.close()
    assert tokens == [1, 2, 3]
    assert owner_of(tmp_path) is None
    history = owners(tmp_path)
    assert [(o.token, o.attempt, o.pid) for o in history] == [(n, n, os.getpid()) for n in tokens]
    assert all(o.until >= o.since for o in history)


def test_a_living_owner_is_named(tmp_path):
    lock = RunLock(tmp_path, 7)
    with pytest.raises(LedgerError, match=rf"in use by process {os.getpid()} on .* \(attempt 7, since 20.*never share"):
        RunLock(tmp_path)
    lock.close()
    RunLock(tmp_path).close()


def test_a_killed_owner_of_this_machine_is_stale_at_once(tmp_path):
    code = (
        "import os\nfrom pathlib import Path\nfrom pipelines.ledger.lock import RunLock\n"
        f"RunLock(Path({str(tmp_path)!r}), 5)\nos.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    (dead,) = owners(tmp_path)
    assert dead.until == 0
    assert not dead.is_running
    said = []
    lock = RunLock(tmp_path, 6, say=said.append)
    assert (lock.token, said) == (2, [])
    lock.close()


def test_a_reused_process_id_is_another_process(tmp_path):
    leave(tmp_path, started=1.0)
    lock = RunLock(tmp_path)
    assert lock.token == 2
    lock.close()


def test_without_flock_a_running_process_of_this_machine_keeps_the_run(tmp_path, monkeypatch):
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        import psutil

        leave(tmp_path, pid=sleeper.pid, started=psutil.Process(sleeper.pid).create_time(), silent=1000)
        monkeypatch.setattr(module.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(37, "no locks available")))
        with pytest.raises(LedgerError, match=f"in use by process {sleeper.pid}"):
            RunLock(tmp_path)
    finally:
        sleeper.communicate(b"\n")
    RunLock(tmp_path).close()  # it is gone


def test_an_owner_of_another_machine_is_dead_after_its_lease(tmp_path):
    leave(tmp_path, host="elsewhere", silent=31)
    said = []
    lock = RunLock(tmp_path, lease_s=30, say=said.append)
    assert lock.token == 2
    assert "process" in said[0]
    assert "on elsewhere (attempt 1" in said[0]
    assert "has not been heard of for 31 s and counts as dead" in said[0]
    lock.close()


def test_an_owner_of_another_machine_that_breathes_keeps_the_run(tmp_path, monkeypatch):
    """Its sign of life comes while somebody waits for its death."""
    leave(tmp_path, host="elsewhere", silent=5)
    monkeypatch.setattr(module.time, "sleep", lambda _: leave(tmp_path, host="elsewhere", silent=1))
    with pytest.raises(LedgerError, match=r"in use by process \d+ on elsewhere"):
        RunLock(tmp_path, lease_s=30)
    monkeypatch.setattr(module.time, "sleep", lambda _: leave(tmp_path, host="elsewhere", silent=40))
    RunLock(tmp_path, lease_s=30).close()


def test_an_owner_shows_that_it_lives(tmp_path):
    lock = RunLock(tmp_path, lease_s=0.2)
    path = tmp_path / "owners" / "000001.json"
    os.utime(path, (1, 1))
    deadline = time.monotonic() + 20
    while path.stat().st_mtime == 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.stat().st_mtime > 1
    lock.close()


def test_one_of_two_claims_of_a_token_succeeds(tmp_path):
    claims = Owners(DirectoryStorage(tmp_path))
    owner = replace(this_process(1), token=4)
    assert claims.claim(owner) == owner
    assert claims.claim(replace(owner, attempt=2)) is None
    assert claims.read(4) == owner
    assert claims.claim(this_process(3)).token == 5


def test_a_record_that_was_never_finished_is_an_owner_nobody_knows(tmp_path):
    (tmp_path / "owners").mkdir()
    (tmp_path / "owners" / "000001.json").write_text("{")
    os.utime(tmp_path / "owners" / "000001.json", (1, 1))
    lock = RunLock(tmp_path)
    assert lock.token == 2
    assert [o.token for o in owners(tmp_path)] == [2]
    lock.close()


def test_a_process_that_was_asleep_writes_nothing_more(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.trained(1, "0.1", 0.5)
    leave(tmp_path, token=2, host="elsewhere", attempt=2)  # meanwhile another has taken over
    with pytest.raises(LedgerError, match=r"was taken over by process .* on elsewhere \(attempt 2.*deadlines.lease_s"):
        ledger.trained(2, "0.2", 0.4)
    with pytest.raises(LedgerError, match="taken over"):
        ledger.checkpoints.begin(2)
    ledger.close()
    assert [line.record["step"] for line in read_lines(tmp_path / "ledger" / "steps.jsonl")] == [1]


def test_lines_of_an_owner_that_was_declared_dead_do_not_count(tmp_path):
    path = tmp_path / "j.jsonl"
    first, second = Journal(path, token=1), Journal(path, token=2)
    first.append({"n": 1})
    first.commit()
    second.append({"n": 2})
    second.commit()
    first.append({"n": 3})  # it slept between asking who owns the run and writing
    first.commit()
    second.append({"n": 4})
    second.commit()
    assert [(line.token, line.record["n"]) for line in read_lines(path)] == [(1, 1), (2, 2), (2, 4)]
    assert [r["n"] for r in Journal(path, token=3)] == [1, 2, 4]


def test_lines_without_a_token_are_read(tmp_path):
    import zlib

    body = b'{"a":"b.c d"}'
    old = b"%08x %s\n" % (zlib.crc32(body), body)
    assert decode(old) == (0, {"a": "b.c d"})
    line = encode_line({"a": "b.c d"}, 12)
    assert decode(line) == (12, {"a": "b.c d"})
    assert line.partition(b" ")[2] == body + b"\n"
    assert decode_line(line.replace(b".12 ", b".13 ")) is None  # the checksum covers the token
