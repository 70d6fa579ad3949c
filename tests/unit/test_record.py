"""A run keeps its configuration in a form that gives the same configuration."""

from pathlib import Path

import pytest

from configs.loading import config_hash, config_kind, load_config
from pipelines.record import CONFIGURATION, write_configuration

SHIPPED = sorted(p for p in (Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_kept_configuration_is_the_one_it_was(path, tmp_path):
    config = load_config(config_kind(path), path, [f"run.root={tmp_path}"])
    write_configuration(tmp_path, config)
    kept = tmp_path / CONFIGURATION
    assert config_kind(kept) is type(config)
    again = load_config(config_kind(kept), kept, [])
    assert again == config
    assert config_hash(again) == config_hash(config)
