"""Checkpoints: complete or not there at all, damage is found and named, old ones go last."""

import errno
import json
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.files import FileSum
from configs.loading import ConfigError, validate
from configs.runs import RunConfig
from configs.schema import Checkpointing
from pipelines.ledger import checkpoints as module
from pipelines.ledger.checkpoints import (
    MARK,
    Checkpoints,
    Manifest,
    checkpoint_dir,
    complete_checkpoints,
    damage,
    newest_whole,
    read_manifest,
)
from pipelines.ledger.journal import LedgerError
from pipelines.ledger.keeping import Measured, kept_steps, refuse_unmeasured

SUMS = st.builds(FileSum, st.text(max_size=9), st.integers(0, 2**63), st.integers(0, 2**32 - 1))
MANIFESTS = st.builds(
    Manifest,
    st.integers(1, 10**9),
    st.text(max_size=9),
    st.integers(0, 10**6),
    st.floats(0, 1e10),
    st.lists(SUMS, max_size=4).map(tuple),
)


def write(checkpoints: Checkpoints, step: int, rules: Checkpointing | None = None, content: str = "weights") -> None:
    partial = checkpoints.begin(step)
    (partial / "trainer").mkdir()
    (partial / "trainer" / "rank-0").write_text(f"{content} of step {step}")
    (partial / "reference").mkdir()
    (partial / "reference" / "bucket").write_text("reference")
    summed = FileSum.of(partial / "trainer" / "rank-0", partial)  # the reference is summed by whoever seals
    checkpoints.seal(partial, step, f"0.{step}", [summed], rules or Checkpointing(keep=9))
    checkpoints.settle()


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path, token=3)
    yield made
    made.close()


@given(MANIFESTS)
def test_a_manifest_comes_back_and_a_changed_byte_is_found(manifest):
    data = manifest.encode()
    assert Manifest.parse(data, "here") == manifest
    for at in range(0, len(data) - 2, 7):
        changed = bytearray(data)
        changed[at] ^= 1
        if data[at : at + 1] != b" ":  # a space between two words may be lost
            with pytest.raises(LedgerError, match=r"^here is damaged"):
                Manifest.parse(bytes(changed), "here")


def test_a_checkpoint_lists_every_file_with_size_and_checksum(tmp_path, checkpoints):
    write(checkpoints, 4)
    ((step, path),) = complete_checkpoints(tmp_path)
    manifest = read_manifest(path)
    assert (step, path, manifest.step, manifest.version, manifest.token) == (
        4,
        checkpoint_dir(tmp_path, 4),
        4,
        "0.4",
        3,
    )
    assert {f.path: f.bytes for f in manifest.files} == {"trainer/rank-0": 17, "reference/bucket": 9}
    assert damage(path) == ""


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("harm", [flip, cut, os.unlink], ids=["bit flipped", "cut off", "missing"])
@pytest.mark.parametrize("name", ["trainer/rank-0", "reference/bucket", MARK])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, checkpoints, harm, name):
    write(checkpoints, 4)
    write(checkpoints, 8)
    harm(checkpoint_dir(tmp_path, 8) / name)
    said = []
    assert newest_whole(tmp_path) == (4, checkpoint_dir(tmp_path, 4))  # a reader changes nothing
    assert checkpoints.newest(said.append) == (4, str(checkpoint_dir(tmp_path, 4)))
    if harm is os.unlink and name == MARK:
        assert said == []  # it never was complete
    else:
        (text,) = said
        assert text.startswith("checkpoint step-000008 is damaged")
        assert name in text
        assert (tmp_path / "checkpoints" / "step-000008.damaged").exists()
    write(checkpoints, 8, content="other weights")
    assert checkpoints.newest(said.append) == (8, str(checkpoint_dir(tmp_path, 8)))


def test_without_a_whole_checkpoint_the_run_begins_anew(tmp_path, checkpoints):
    assert checkpoints.newest(print) == (0, "")
    write(checkpoints, 4)
    cut(checkpoint_dir(tmp_path, 4) / "trainer" / "rank-0")
    assert checkpoints.newest(print, again=True) == (0, "")


def test_what_was_broken_off_counts_for_nothing_and_goes(tmp_path, checkpoints):
    write(checkpoints, 4)
    partial = checkpoints.begin(8)
    (partial / "trainer").mkdir()
    (partial / "trainer" / "rank-0").write_text("half")  # the process dies here
    again = Checkpoints(tmp_path, token=4)
    assert again.newest(print) == (4, str(checkpoint_dir(tmp_path, 4)))
    fresh = again.begin(8)
    assert fresh != partial
    assert not partial.exists()
    again.close()


def test_old_ones_go_only_after_a_newer_one_is_complete(tmp_path, checkpoints, monkeypatch):
    rules = Checkpointing(keep=1)
    write(checkpoints, 4, rules)
    seen = []
    rename = type(tmp_path).rename
    monkeypatch.setattr(
        type(tmp_path), "rename", lambda self, to: (seen.append(complete_checkpoints(tmp_path)), rename(self, to))[1]
    )
    write(checkpoints, 8, rules)
    assert [s for s, _ in seen[0]] == [4]
    assert [s for s, _ in complete_checkpoints(tmp_path)] == [8]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000008"]


def test_a_checkpoint_that_is_being_copied_stays(tmp_path, checkpoints):
    rules = Checkpointing(keep=1)
    write(checkpoints, 4, rules)
    checkpoints.in_use = lambda: checkpoint_dir(tmp_path, 4)
    write(checkpoints, 8, rules)
    assert [s for s, _ in complete_checkpoints(tmp_path)] == [4, 8]
    checkpoints.in_use = lambda: None
    write(checkpoints, 12, rules)
    assert [s for s, _ in complete_checkpoints(tmp_path)] == [12]


STEPS = st.sets(st.integers(1, 30), min_size=1)
VALUES = st.dictionaries(st.integers(1, 30), st.floats(-1, 1))


@given(STEPS, VALUES, st.integers(1, 4), st.integers(0, 4), st.sampled_from(["max", "min"]))
def test_the_newest_and_the_best_are_kept(steps, values, keep, keep_best, best):
    rules = Checkpointing(keep=keep, keep_best=keep_best, best=best)
    kept = kept_steps(steps, rules, values)
    assert kept <= steps
    assert set(sorted(steps)[-keep:]) <= kept
    assert len(kept) <= keep + keep_best
    assert max(steps) in kept
    measured = steps & set(values)
    if keep_best and measured:
        sign = 1 if best == "max" else -1
        assert max(sign * values[s] for s in measured) in {sign * values[s] for s in measured & kept}


def test_the_best_survive_newer_ones(tmp_path, checkpoints):
    rules = Checkpointing(keep=1, keep_best=1, best_metric="eval/win_rate")
    for step, rate in ((1, 0.5), (2, 0.9), (3, float("nan")), (4, 0.6), (5, 0.7)):
        write(checkpoints, step, rules)
        checkpoints.measured(rules, step, {"eval/win_rate": rate, "loss": 1.0})
    assert [s for s, _ in complete_checkpoints(tmp_path)] == [2, 5]
    assert Measured.read(tmp_path, "eval/win_rate").values == {1: 0.5, 2: 0.9, 4: 0.6, 5: 0.7}
    assert Measured.read(tmp_path, "loss").values == {}
    checkpoints.measured(Checkpointing(keep_best=0), 6, {"eval/win_rate": 1.0})
    assert 6 not in Measured.read(tmp_path, "eval/win_rate").values


def test_an_owner_that_lost_the_run_completes_nothing(tmp_path):
    owned = [True]

    def check():
        if not owned:
            raise LedgerError("taken over")

    stale = Checkpoints(tmp_path, token=1, check=check)
    partial = stale.begin(4)
    (partial / "weights").write_text("w")
    owned.clear()
    stale.seal(partial, 4, "0.4", [], Checkpointing())
    with pytest.raises(LedgerError, match="taken over"):
        stale.settle()
    stale.close()
    assert complete_checkpoints(tmp_path) == []


def test_a_worker_whose_files_are_not_here_is_noticed(tmp_path, checkpoints):
    partial = checkpoints.begin(4)
    (partial / "rank-0").write_text("abc")
    checkpoints.seal(partial, 4, "0.4", [FileSum("rank-0", 9, 1)], Checkpointing())
    with pytest.raises(LedgerError, match=r"rank-0 is not as its worker wrote it.*shared disk"):
        checkpoints.settle()


def test_too_little_room_is_said_before_anything_is_written(tmp_path, checkpoints, monkeypatch):
    write(checkpoints, 4)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(LedgerError, match=r"no room for the checkpoint of step 8.*--resume=auto"):
        checkpoints.begin(8)
    assert newest_whole(tmp_path) == (4, checkpoint_dir(tmp_path, 4))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000004"]


def test_a_full_disk_while_sealing_stops_cleanly(tmp_path, checkpoints, monkeypatch):
    write(checkpoints, 4)

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    partial = checkpoints.begin(8)
    (partial / "w").write_text("w")
    monkeypatch.setattr(module, "replace_file", full)
    checkpoints.seal(partial, 8, "0.8", [], Checkpointing())
    with pytest.raises(LedgerError, match=r"checkpoint of step 8 cannot be written to .*No space left on device; free"):
        checkpoints.begin(12)
    assert newest_whole(tmp_path) == (4, checkpoint_dir(tmp_path, 4))


def test_markers_of_another_version_are_no_checkpoints(tmp_path, checkpoints):
    old = checkpoint_dir(tmp_path, 4)
    old.mkdir(parents=True)
    (old / MARK).write_text(json.dumps({"step": 4}))
    assert complete_checkpoints(tmp_path) == []
    assert "of another version" in damage(old)


def online(evaluate, every, **rules):
    return validate(
        RunConfig,
        {
            "run": {"name": "run", "root": "/tmp"}, "model": {"path": "/m"}, "judge": {"kind": "rule", "rule": "a:b"},
            "prompts": {"train": "/t", "heldout": "/h"}, "evaluation": {"every": evaluate},
            "checkpoint": {"every": every, "keep_best": 1, **rules},
        },
    )  # fmt: skip


def test_the_best_are_chosen_by_what_is_measured_with_them():
    refuse_unmeasured(online(4, 8))
    refuse_unmeasured(online(0, 8, best_metric="loss", best="min"))
    refuse_unmeasured(online(0, 8, keep_best=0))
    for config, message in (
        (online(0, 8), r"evaluation.every = 0 does not measure.*set evaluation.every=8"),
        (online(3, 8), r"by eval/win_rate, which evaluation.every = 3"),
        (online(4, 8, best_metric="wins"), r"checkpoint.best_metric = wins: no such metric; known: .*eval/win_rate"),
        (online(4, 8, best_metric="heldout/loss"), r"heldout/loss is not measured in this kind of training"),
    ):
        with pytest.raises(ConfigError, match=message):
            refuse_unmeasured(config)
