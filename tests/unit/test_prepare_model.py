"""A prepared model is complete or not there, and nobody's files are replaced."""

import json
from pathlib import Path

import pytest

from pipelines.prepare_model import PrepareError, missing_parts, prepare, tensors, weight_files
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("prepare") / "model")


def copy(source: Path, *, without: str = ""):
    def write(out: Path) -> None:
        for file in source.iterdir():
            if file.name != without:
                (out / file.name).write_bytes(file.read_bytes())

    return write


def test_a_second_preparation_does_nothing(model, tmp_path):
    out = tmp_path / "out"
    assert prepare(out, copy(model))
    assert missing_parts(out) == []
    assert not prepare(out, lambda _: pytest.fail("written again"))


@pytest.mark.parametrize("lacking", ["model.safetensors", "config.json", "tokenizer.json"])
def test_an_incomplete_model_does_not_appear(model, tmp_path, lacking):
    with pytest.raises(PrepareError, match="incomplete"):
        prepare(tmp_path / "out", copy(model, without=lacking))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_preparation_leaves_nothing(tmp_path):
    def fail(out: Path) -> None:
        (out / "config.json").write_text("{}")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        prepare(tmp_path / "out", fail)
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_directory_is_replaced_and_a_foreign_one_is_not(model, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    assert prepare(out, copy(model))
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.tex").write_text("x")
    with pytest.raises(PrepareError, match=r"chapter1\.tex"):
        prepare(foreign, copy(model))
    assert (foreign / "chapter1.tex").read_text() == "x"


def test_a_file_cut_short_is_named(model, tmp_path):
    whole = (model / "model.safetensors").read_bytes()
    assert tensors(model / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(whole[:-7])
    with pytest.raises(ValueError, match=r"model\.safetensors holds .* cut short"):
        tensors(tmp_path / "model.safetensors")


def test_an_index_that_names_a_missing_shard_is_refused(tmp_path):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors is missing"):
        weight_files(tmp_path)
