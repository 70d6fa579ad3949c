"""Configurations, overrides, prompt files and judge templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import strategies as st

from actors.judges.questions import Questionnaire
from actors.judges.template import load_guidelines, load_template
from configs.judges import LlmJudge
from configs.loading import config_hash, config_kind, flatten, load_config
from configs.runs import OfflineConfig, RunConfig, TrainingConfig
from pipelines.prompts import check_file
from tests.fuzz.hostile import VALUES, garbled, line_files, mutants
from tests.fuzz.trial import fuzzed, tried

ROOT = Path(__file__).parents[2]
SHIPPED = [p.read_bytes() for p in sorted((ROOT / "configs").glob("*.yaml"))]
OWN = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
GOOD = [f"{section}.{field}={json.dumps(value)}" for section, fields in OWN.items() for field, value in fields.items()]
KEYS = sorted({key for data in SHIPPED for section, fields in yaml.safe_load(data).items() if isinstance(fields, dict)
               for key in (section, *(f"{section}.{field}" for field in fields))})  # fmt: skip
SUBJECTS = ("config.yaml", "override", "unknown key", *RunConfig.model_fields, *OfflineConfig.model_fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("configs")


def _load(path: Path, overrides: tuple[str, ...] = ()) -> TrainingConfig:
    config = load_config(config_kind(path), path, overrides)
    flatten(config)
    config_hash(config)
    return config


@fuzzed(
    0.12,
    st.one_of(garbled(SHIPPED), mutants([yaml.safe_load(d) for d in SHIPPED]).map(lambda v: json.dumps(v).encode())),
)
def test_configurations(folder, data):
    (folder / "config.yaml").write_bytes(data)
    tried("configuration", lambda: _load(folder / "config.yaml"), *SUBJECTS)
    assert [p.name for p in folder.iterdir()] == ["config.yaml"]


VALUE = st.one_of(
    VALUES.map(json.dumps), st.text(max_size=12), st.sampled_from(["[" * 3000, "&a [*a]", "!!int x", "9" * 5000])
)
OVERRIDE = st.one_of(
    st.builds(lambda key, value: f"{key}={value}", st.sampled_from(KEYS) | st.text(max_size=10), VALUE),
    st.text(max_size=12),
    st.sampled_from(GOOD),
    st.sampled_from(GOOD),
)


@fuzzed(0.08, st.lists(OVERRIDE, min_size=1, max_size=2))
def test_overrides(overrides):
    tried("override", lambda: _load(ROOT / "configs" / "quickstart.yaml", tuple(overrides)), *SUBJECTS)


PROMPTS = [
    {"id": "a", "prompt": "Say hello."},
    {"id": 7, "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}], "k": [1]},
]


@fuzzed(0.1, line_files(PROMPTS))
def test_prompt_files(folder, data):
    path = folder / "prompts.jsonl"
    path.write_bytes(data)
    found = tried("prompt file", lambda: check_file(path), "prompts.jsonl")
    if isinstance(found, dict):
        for identifier, text in found.items():
            assert text.strip()
            (identifier + text).encode()  # or no tokenizer could read it
    path.unlink()


TEMPLATES = [p.read_bytes() for p in sorted((ROOT / "actors" / "judges" / "templates").glob("*.yaml"))]


@fuzzed(
    0.05,
    st.one_of(
        garbled(TEMPLATES), mutants([yaml.safe_load(t) for t in TEMPLATES]).map(lambda v: json.dumps(v).encode())
    ),
    st.sampled_from(["pairwise", "pointwise"]),
)
def test_judge_templates(folder, data, mode):
    path = folder / "template.yaml"
    path.write_bytes(data)
    judge = LlmJudge(kind="llm", model="m", mode=mode, template=str(path))
    template = tried("judge template", lambda: load_template(str(path), mode), "judge.template")
    if template is not None:
        tried("questions of a template", lambda: Questionnaire(judge), "judge.")
    tried("judge guidelines", lambda: load_guidelines(str(path)), "judge.guidelines")
    path.unlink()


def test_a_config_of_aliases_is_refused_before_it_is_expanded(tmp_path):
    """Nine lines that stand for a billion values."""
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (tmp_path / "config.yaml").write_text("\n".join(bomb))
    assert tried("configuration", lambda: load_config(RunConfig, tmp_path / "config.yaml"), "config.yaml") is None
