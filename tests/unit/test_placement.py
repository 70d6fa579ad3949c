"""What a run asks of a cluster, and how a shortfall is explained."""

from __future__ import annotations

from typing import Any

import pytest

from actors.placement import by_stage, requested, shortfalls
from configs.loading import validate
from configs.runs import RunConfig

RULE = {"kind": "rule", "rule": "actors.judges.rules:vader_sentiment"}


def configured(resources: dict[str, Any], second_judge: bool = False) -> RunConfig:
    return validate(
        RunConfig,
        {
            "run": {"name": "t"},
            "model": {"path": "/m"},
            "prompts": {"train": "/a", "heldout": "/b"},
            "judge": RULE,
            "evaluation": {"judge": RULE} if second_judge else {},
            "resources": resources,
        },
    )


SPREAD = {
    "sampler": {"actors": 2, "cpus": 1, "gpus": 1, "custom": {"fast": 0.5}},
    "judge": {"actors": 3, "cpus": 0.5},
    "reference": {"actors": 1, "cpus": 2, "gpus": 0.5},
    "trainer": {"actors": 4, "cpus": 0.25, "gpus": 0.25, "custom": {"fast": 0.25}},
    "data_cpus": 0.75,
}


def test_every_stage_counts_all_its_actors() -> None:
    assert by_stage(configured(SPREAD)) == {
        "sampler": {"CPU": 2, "GPU": 2, "fast": 1},
        "judge": {"CPU": 1.5},
        "reference": {"CPU": 2, "GPU": 0.5},
        "trainer": {"CPU": 1, "GPU": 1, "fast": 1},
        "data_cpus": {"CPU": 0.75},
    }


def test_totals_are_over_all_stages() -> None:
    assert requested(configured(SPREAD)) == pytest.approx({"CPU": 7.25, "GPU": 3.5, "fast": 2})


def test_a_second_judge_has_a_pool_of_its_own() -> None:
    assert by_stage(configured(SPREAD, second_judge=True))["judge"] == {"CPU": 3.0}
    assert requested(configured(SPREAD, second_judge=True))["CPU"] == pytest.approx(8.75)


def test_a_run_without_gpus_asks_for_none() -> None:
    assert requested(configured({})) == pytest.approx({"CPU": 4 * 0.25 + 0.5})


def test_enough_is_no_shortfall() -> None:
    assert shortfalls(configured(SPREAD), {"CPU": 7.25, "GPU": 3.5, "fast": 2}) == []
    assert shortfalls(configured(SPREAD), {"CPU": 64, "GPU": 8, "fast": 9, "memory": 1}) == []


def test_sums_of_fractions_are_not_held_against_a_run() -> None:
    tenths = {s: {"cpus": 0.1} for s in ("sampler", "judge", "reference")}
    config = configured({**tenths, "trainer": {"cpus": 0}, "data_cpus": 0.1})
    assert requested(config)["CPU"] >= 0.4
    assert shortfalls(config, {"CPU": 0.4}) == []
    assert len(shortfalls(config, {"CPU": 0.4 - 1e-6})) == 1


def test_a_shortfall_says_what_is_missing_who_takes_it_and_what_to_change() -> None:
    (line,) = shortfalls(configured(SPREAD), {"CPU": 4, "GPU": 4, "fast": 2})
    assert line.startswith("CPU: 7.25 needed, 4 present, 3.25 missing")
    assert "(sampler 2, judge 1.5, reference 2, trainer 1, data_cpus 0.75)" in line
    assert "lower resources.<stage>.cpus or .actors" in line


def test_only_the_stages_that_take_a_resource_are_named() -> None:
    lines = shortfalls(configured(SPREAD), {"CPU": 8})
    assert [line.split(":")[0] for line in lines] == ["GPU", "fast"]
    gpu, fast = lines
    assert "3.5 needed, 0 present, 3.5 missing (sampler 2, reference 0.5, trainer 1)" in gpu
    assert "resources.<stage>.gpus" in gpu
    assert "2 needed, 0 present, 2 missing (sampler 1, trainer 1)" in fast
    assert "resources.<stage>.custom.fast" in fast


def test_an_evaluation_needs_no_trainer() -> None:
    config = configured(SPREAD)
    trainer = by_stage(config)["trainer"]["CPU"]
    assert requested(config)["CPU"] - requested(config, training=False)["CPU"] == pytest.approx(trainer)
    just_enough = requested(config, training=False)
    assert shortfalls(config, just_enough)
    assert not shortfalls(config, just_enough, training=False)
