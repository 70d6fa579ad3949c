"""Models and judges that a run cannot use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.checks import Level, inputs
from pipelines.doctor import diagnose
from pipelines.prepare_model import MODEL_NAME
from tests.unit.doctor.fitting import Configure, failure, only


def test_a_missing_model_fails(configure: Configure, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert f"{gone} is not a directory" in failure(configure(model={"path": str(gone)}), "model")
    assert "set model.path" in failure(configure(model={"path": str(gone)}), "model")


def test_the_model_of_the_quickstart_can_be_made(configure: Configure, tmp_path: Path) -> None:
    assert inputs._MAKE_MODEL in failure(configure(model={"path": str(tmp_path / MODEL_NAME)}), "model")


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("config.json", "config.json is missing"),
        ("model.safetensors", "no *.safetensors file"),
        ("tokenizer.json", "no tokenizer.json and no tokenizer.model"),
        ("tokenizer_config.json", "no chat template"),
    ],
)
def test_a_part_of_the_model_is_missing(configure: Configure, model: Path, file: str, problem: str) -> None:
    (model / file).unlink()
    assert problem in failure(configure(), "model")


def test_every_missing_part_is_named(configure: Configure, model: Path) -> None:
    for file in model.iterdir():
        file.unlink()
    assert sum(c.name == "model" and c.level is Level.FAIL for c in diagnose(configure())) == 4


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_broken_config_json_fails(configure: Configure, model: Path, text: str) -> None:
    (model / "config.json").write_text(text)
    assert "config.json is not a JSON object" in failure(configure(), "model")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused(configure: Configure, model: Path, name: str) -> None:
    (model / "model.safetensors").rename(model / name)
    detail = failure(configure(), "model")
    assert "safetensors only" in detail
    assert name in detail


def test_cut_short_weights_fail(configure: Configure, model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "cut short" in failure(configure(), "model")


def test_a_missing_shard_fails(configure: Configure, model: Path) -> None:
    (model / "model.safetensors").rename(model / "a.safetensors")
    index = {"weight_map": {"w": "a.safetensors", "x": "b.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "b.safetensors is missing" in failure(configure(), "model")


def test_weights_may_be_in_several_files(configure: Configure, model: Path) -> None:
    (model / "model.safetensors").rename(model / "a.safetensors")
    shutil.copy(model / "a.safetensors", model / "b.safetensors")
    assert "2 M parameters" in only(configure(), "model").detail


@pytest.mark.parametrize("settings", ["{}", "{", '{"chat_template": null}'])
def test_a_chat_template_is_in_either_place(configure: Configure, model: Path, settings: str) -> None:
    (model / "tokenizer_config.json").write_text(settings)
    assert "no chat template" in failure(configure(), "model")
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert only(configure(), "model").level is Level.OK


def test_a_sentencepiece_tokenizer_will_do(configure: Configure, model: Path) -> None:
    (model / "tokenizer.json").rename(model / "tokenizer.model")
    assert only(configure(), "model").level is Level.OK


# --- judges


def test_an_unknown_judge_fails(configure: Configure) -> None:
    bad = {"kind": "rule", "rule": "no_such_package.rules:score"}
    assert "no module named no_such_package" in failure(configure(judge=bad), "judge")
    detail = failure(configure(evaluation={"judge": bad}), "evaluation.judge")
    assert "correct evaluation.judge.rule" in detail


def test_a_judge_is_not_imported(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "explosive.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert only(configure(judge={"kind": "rule", "rule": "explosive:score"}), "judge").level is Level.OK
