"""A run keeps its configuration in a form that gives the same configuration."""

from dataclasses import replace
from pathlib import Path

import pytest

from configs.loading import config_hash, config_kind, load_config
from configs.runs import RunConfig
from pipelines.ledger.journal import LedgerError
from pipelines.ledger.record import CONFIGURATION, write_configuration, write_record
from pipelines.session import open_run

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


def test_a_run_that_never_began_can_be_started_by_the_same_command(tmp_path):
    """MLflow was out of reach, say: nothing has been done that the person would have to decide about."""
    quickstart = next(p for p in SHIPPED if p.stem == "quickstart")
    config = load_config(RunConfig, quickstart, [f"run.root={tmp_path}", "run.name=mine"])
    run_dir, record = open_run(config, "never")
    run_dir.mkdir()
    write_record(run_dir, record)
    assert open_run(config, "never")[1].attempts == 2
    write_record(run_dir, replace(record, mlflow_run="abc"))
    with pytest.raises(LedgerError, match="exists; go on with --resume=auto"):
        open_run(config, "never")
