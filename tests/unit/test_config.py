"""Configuration: every shipped file loads, every mistake is named with its fix."""

from pathlib import Path

import pytest

from configs.loading import (
    INPUT_FILES,
    ConfigError,
    config_hash,
    config_kind,
    differing_fields,
    flatten,
    load_config,
    scientific,
)
from configs.runs import RunConfig

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def test_configs_are_found():
    assert {"quickstart.yaml", "verifiable.yaml"} <= {p.name for p in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_shipped_config_loads(path):
    kind = config_kind(path)
    config = load_config(kind, path)
    files = {key: value for key, value in flatten(config).items() if key.endswith(INPUT_FILES) and value}
    assert "prompts.train" in files or "data.train" in files
    assert all(Path(file).is_file() for file in files.values())


def test_override():
    assert load_config(RunConfig, QUICKSTART, ["objective.beta=0.2"]).objective.beta == 0.2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("objective.bta=0.2", ["objective.bta", "did you mean 'beta'"]),
        ("objektive.beta=0.2", ["objektive", "did you mean 'objective'"]),
        ("objective.beta=-1", ["objective.beta", "greater than 0", "-1"]),
        ("sampling.candidates=1", ["sampling.candidates", "greater than or equal to 2", "1"]),
        ("objective.label_smoothing=0.5", ["objective.label_smoothing", "less than 0.5"]),
        ("model.trust_remote_code=true", ["model.trust_remote_code"]),
        ("run.name=../evil", ["run.name", "pattern"]),
        ("run.root=runs", ["run.root", "relative", "absolute"]),
        (
            "sampling.max_tokens=4000",
            ["prompts.max_tokens (128)", "sampling.max_tokens (4000)", "sampling.max_model_len"],
        ),
        ("batching.micro_batch_tokens=100", ["batching.micro_batch_tokens (100)", "raise"]),
        ("judge.rule=nonsense", ["judge.rule", "pattern"]),
        ("beta", ["section.key=value"]),
        ("run.steps=[", ["not valid YAML"]),
    ],
)
def test_mistakes_are_named(override, words):
    with pytest.raises(ConfigError) as caught:
        load_config(RunConfig, QUICKSTART, [override])
    for word in words:
        assert word in str(caught.value)


def test_all_problems_at_once():
    with pytest.raises(ConfigError) as caught:
        load_config(RunConfig, QUICKSTART, ["objective.bta=1", "run.steps=0"])
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(("text", "word"), [("- a", "mapping"), ("a: [", "not valid YAML"), ("", "mapping")])
def test_broken_files(tmp_path, text, word):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=word):
        load_config(RunConfig, tmp_path / "c.yaml")


def test_missing_file():
    with pytest.raises(ConfigError, match=r"nowhere.yaml"):
        load_config(RunConfig, "nowhere.yaml")


def test_hash_covers_the_experiment_and_not_its_placement():
    base = load_config(RunConfig, QUICKSTART)
    assert config_hash(base) == config_hash(
        load_config(RunConfig, QUICKSTART, ["resources.sampler.threads=7", "run.steps=99"])
    )
    another_cluster = ["resources.trainer.actors=3", "resources.sampler.actors=2", "resources.reference.gpus=1"]
    elsewhere = [*another_cluster, "checkpoint.storage=s3://bucket/runs", "deadlines.lease_s=60"]
    assert config_hash(base) == config_hash(load_config(RunConfig, QUICKSTART, elsewhere))
    with pytest.raises(ConfigError, match=r"checkpoint.storage: is neither s3://.*got 'runs/copies'"):
        load_config(RunConfig, QUICKSTART, ["checkpoint.storage=runs/copies"])
    other = load_config(RunConfig, QUICKSTART, ["objective.beta=0.3"])
    assert config_hash(base) != config_hash(other)
    assert differing_fields(scientific(base), scientific(other)) == ["objective.beta: 0.1 -> 0.3"]


def test_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_config(RunConfig, QUICKSTART).objective.beta = 1.0
