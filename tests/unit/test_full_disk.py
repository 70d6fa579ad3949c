"""A disk that is full or read-only: the run stops with one message, and what was committed before is whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.ledger.journal import LedgerError, read_lines
from pipelines.ledger.ledger import Ledger, RunRecord, read_record, write_record

ROOT = Path(__file__).parents[2]
# The kernel itself refuses to let any file of the process grow beyond a limit, in the middle of a write.
FILLING = """
import resource, sys
from pathlib import Path
from pipelines.ledger.ledger import Ledger, LedgerError
ledger = Ledger(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
for step in range(1, 1000):
    try:
        ledger.trained(step, "0." + "1" * (step % 70), 0.5)
    except LedgerError as error:
        print(step, error)
        break
try:
    ledger.trained(step, "0.1", 0.5)
except LedgerError as error:
    print(error)
ledger.close()
"""


def test_a_journal_that_cannot_grow_ends_with_a_whole_record(tmp_path):
    done = subprocess.run([sys.executable, "-c", FILLING, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    step = int(first.partition(" ")[0])
    assert "steps.jsonl: File too large; free space there and go on with --resume=auto" in first
    assert "a write has failed before" in second
    data = (tmp_path / "ledger" / "steps.jsonl").read_bytes()
    assert len(data) <= 4000
    assert data.endswith(b"\n")
    kept = [line.record["step"] for line in read_lines(tmp_path / "ledger" / "steps.jsonl")]
    assert kept == list(range(1, step))
    ledger = Ledger(tmp_path)  # once there is room again
    assert ledger.cut_bytes == 0
    ledger.trained(step, "0.1", 0.5)
    ledger.close()


@pytest.fixture
def as_somebody(tmp_path):
    """Without root's right to write everywhere."""
    if os.geteuid() == 0:
        for path in (tmp_path, *tmp_path.parents):
            if not os.access(path, os.X_OK):
                pytest.skip("the temporary directory is not open to others")
    mode = tmp_path.stat().st_mode
    opened = [p for p in tmp_path.parents if str(p).startswith("/tmp/") and not p.stat().st_mode & 0o005]
    before = {p: p.stat().st_mode for p in opened}
    for path in opened:
        path.chmod(path.stat().st_mode | 0o055)
    tmp_path.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield tmp_path
    os.seteuid(user)
    tmp_path.chmod(mode)
    for path, old in before.items():
        path.chmod(old)


def test_a_read_only_run_root_is_named_before_anything_happens(as_somebody):
    with pytest.raises(LedgerError, match=r"the lock cannot be written to .*run.*Permission denied.*set run.root"):
        Ledger(as_somebody / "run")
    assert list(as_somebody.iterdir()) == []


def test_run_json_stays_as_it_was(tmp_path):
    record = RunRecord("hash", {"a": "1"}, "run", 2, 7)
    write_record(tmp_path, record)
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom pipelines.ledger.ledger import *\n"
        "record = read_record(Path(sys.argv[1]))\nresource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))\n"
        "try:\n    write_record(Path(sys.argv[1]), record)\nexcept LedgerError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert "run.json cannot be written to" in done.stdout, done.stderr
    assert read_record(tmp_path) == record
