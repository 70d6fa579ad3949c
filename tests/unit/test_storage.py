"""A directory and an S3 bucket behave alike; throttling is waited out and counted. The S3 server is a real one."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest

from pipelines.ledger.journal import LedgerError
from pipelines.ledger.lock import Lease, Owners, this_process
from pipelines.ledger.storage import StorageError, open_storage
from tests.s3 import s3_server


@pytest.fixture(scope="module")
def server():
    with s3_server("runs") as made:
        yield made


@pytest.fixture(params=["directory", "s3"])
def storage(request, tmp_path, server, monkeypatch):
    if request.param == "directory":
        return open_storage(str(tmp_path / "second"), "run")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return open_storage("s3://runs/some/prefix", f"run-{time.monotonic_ns()}")


def test_objects_are_whole_and_listed_in_order(storage, tmp_path):
    assert storage.get("a/b") is None
    assert storage.age("a/b") is None
    assert storage.keys() == []
    storage.put("a/b", b"one")
    storage.put("a/b", b"two")
    storage.put("ab", b"")
    storage.put("c", b"x")
    assert storage.get("a/b") == b"two"
    assert storage.keys() == ["a/b", "ab", "c"]
    assert storage.keys("a/") == ["a/b"]
    assert storage.keys("a") == ["a/b", "ab"]
    assert -2 < storage.age("c") < 60
    storage.delete(["a/b", "c", "never there"])
    assert storage.keys() == ["ab"]
    file = tmp_path / "file"
    file.write_bytes(os.urandom(9 * 2**20))
    storage.upload("big", file)
    back = tmp_path / "there" / "back"
    storage.download("big", back)
    assert back.read_bytes() == file.read_bytes()
    assert storage.traffic.uploaded_bytes >= 9 * 2**20
    with pytest.raises(LedgerError, match="missing"):
        storage.download("missing", tmp_path / "x")


def test_of_many_that_create_an_object_one_succeeds(storage):
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: storage.create("token", b"%d" % i), range(8)))
    assert sum(won) == 1
    assert storage.get("token") == b"%d" % won.index(True)


def test_a_storage_has_one_owner(storage):
    parent = psutil.Process(os.getppid())
    alive = replace(this_process(1), pid=parent.pid, started=parent.create_time(), token=1)
    assert Owners(storage).claim(alive)
    with pytest.raises(LedgerError, match=f"in use by process {parent.pid}"):
        Lease(storage, this_process(1), 30, print)
    Owners(storage).write(replace(alive, until=1.0))
    mine = Lease(storage, this_process(1), 30, print)
    mine.check()
    taken = Owners(storage).claim(this_process(2))
    assert taken.token == 3
    with pytest.raises(LedgerError, match="was taken over by"):
        mine.check()
    assert mine.lost
    mine.close()


def test_who_is_behind_the_storage_is_refused(storage):
    Lease(storage, this_process(1), 30, print).close()
    Lease(storage, this_process(2), 30, print).close()
    with pytest.raises(LedgerError, match=r"has been gone on with elsewhere.*--resume=auto restores it"):
        Lease(storage, replace(this_process(3), token=2), 30, print)
    ahead = Lease(storage, replace(this_process(3), token=7), 30, print)
    assert ahead.token == 7
    ahead.close()


def test_throttling_is_waited_out_and_counted(server, monkeypatch):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    storage = open_storage("s3://runs", "throttled")
    left = [3]

    def busy(method, path):
        left[0] -= method == "PUT"
        return method == "PUT" and left[0] >= 0

    server.refuse = busy
    try:
        storage.put("key", b"value")
    finally:
        server.refuse = lambda method, path: False
    assert storage.get("key") == b"value"
    assert (storage.traffic.retried, storage.traffic.throttled) == (3, 3)


def test_a_repeated_creation_recognises_its_own_first_attempt(server, monkeypatch):
    """The server had done it, but its answer was lost."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    storage = open_storage("s3://runs", "repeated")
    assert storage.create("key", b"mine")
    assert storage.create("key", b"mine")
    assert not storage.create("key", b"another's")


def test_what_is_wrong_is_said(server, monkeypatch):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=r"s3://absent/run cannot be opened: .*NoSuchBucket.*checkpoint.storage"):
        open_storage("s3://absent", "run")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(StorageError, match="no credentials; set AWS_ACCESS_KEY_ID"):
        open_storage("s3://runs", "run")
