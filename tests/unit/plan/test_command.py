"""``rondo plan`` from the command line."""

import json

import pytest
import yaml
from click.testing import CliRunner

from pipelines.plan.command import plan
from tests.unit.plan.setups import LLAMA_70B, model_directory

CONFIG = {
    "run": {"name": "planned", "root": "/tmp"},
    "prompts": {"train": "t.jsonl", "heldout": "h.jsonl", "max_tokens": 512},
    "sampling": {"prompts_per_step": 128, "candidates": 4, "max_tokens": 512, "max_model_len": 1024},
    "batching": {"micro_batch_tokens": 4096, "activation_checkpointing": True},
    "judge": {"kind": "rule", "rule": "a:b"},
}
CLUSTER = {"pools": [{"nodes": 2, "gpus": 8, "gpu": "H100-SXM", "network_gbit_s": 3200, "price_per_hour": 30}]}


@pytest.fixture
def rondo_plan(tmp_path):
    """Runs the command on a configuration and a cluster; returns its exit code, output and JSON."""

    def run(*arguments, model=None, cluster=CLUSTER):
        directory = tmp_path / "model"
        directory.mkdir(exist_ok=True)
        model_directory(directory, **({"model": model} if model else {}))
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"model": {"path": str(directory)}}))
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(cluster))
        out = tmp_path / "plan.json"
        words = [str(tmp_path / "config.yaml"), "--cluster", str(tmp_path / "cluster.yaml"), "--json", str(out)]
        done = CliRunner().invoke(plan, [*words, *arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.output, json.loads(out.read_text()) if out.exists() else None

    return run


def test_a_plan_says_what_to_run_and_runs_as_configured(rondo_plan):
    code, output, found = rondo_plan()
    assert code == 0
    assert "planned: llama, 8.030 B parameters, 128 KiB of KV cache a token; on 2 x 8 H100-SXM" in output
    best = found["recommended"]
    assert found["configured"] is None
    assert f"resources.trainer.actors={best['groups']['trainer']['actors']}" in output
    again = rondo_plan(*best["overrides"])[2]["configured"]
    for key in ("seconds_per_step", "pairs_per_s", "bottleneck", "groups"):
        assert again[key] == best[key]
    assert best["price_per_1000_pairs"] == pytest.approx(60 / 3600 / best["pairs_per_s"] * 1000)
    slowest_first = [x["seconds_per_step"] for x in found["by_staleness"]]
    assert slowest_first == sorted(slowest_first, reverse=True)


def test_groups_that_do_not_fit_end_with_an_error_that_names_what_is_missing(rondo_plan):
    groups = ("resources.sampler.actors=20", "resources.sampler.gpus=1", "resources.trainer.gpus=1")
    code, output, found = rondo_plan(*groups)
    assert code == 1
    assert "does not fit: GPUs of pool 0 (H100-SXM): 22 needed (sampler 20, reference 1, trainer 1)" in output
    assert "does not fit: trainer: " in output  # one rank does not hold 8 B parameters and their optimizer
    assert len(found["shortfalls"]) == 2
    assert found["recommended"]["pairs_per_s"] > 0  # and what would fit is said all the same


def test_what_fits_nowhere_is_refused(rondo_plan):
    code, output, found = rondo_plan(model=LLAMA_70B)
    assert code == 1
    assert output.startswith("error: no layout fits this cluster:")
    assert "reference: weights 131.4 + " in output
    assert found is None


def test_weights_over_files_between_nodes_are_pointed_out(rondo_plan):
    slow = CLUSTER | {"storage_gb_s": 1.0, "pools": [CLUSTER["pools"][0] | {"nodes": 8, "gpus": 2}]}
    _, output, found = rondo_plan("batching.micro_batch_tokens=8192", cluster=slow)
    assert found["recommended"]["weights"]["transport"] == "filesystem"
    assert "note: weights by filesystem take" in output
    assert rondo_plan(cluster=slow | {"transport": "broadcast"})[2]["notes"] == [
        n for n in rondo_plan(cluster=slow | {"transport": "broadcast"})[2]["notes"] if "filesystem" not in n
    ]


def test_a_simulation_goes_with_the_plan(rondo_plan):
    code, output, found = rondo_plan("--simulate", "--steps", "12", "--staleness", "1")
    assert code == 0
    simulated = found["simulated"]
    assert simulated["steps"] == 12
    assert set(simulated["ages"]) <= {"0", "1"}
    assert simulated["period"] == pytest.approx(found["recommended"]["seconds_per_step"], rel=0.25)
    assert "simulated 12 steps" in output


def test_mistakes_are_one_line(rondo_plan):
    code, output, _ = rondo_plan(cluster={"pools": [{"gpu": "TPU"}]})
    assert (code, output.count("\n")) == (1, 1)
    assert "pools.0: gpu = 'TPU' is not in the library" in output
    code, output, _ = rondo_plan("sampling.candidats=3")
    assert (code, "did you mean 'candidates'?" in output) == (1, True)
