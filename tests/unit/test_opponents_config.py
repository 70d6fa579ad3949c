"""``opponents:``: what may play, and what is refused with its fix."""

from pathlib import Path

import pytest

from actors.placement import requested
from configs.loading import ConfigError, load_config
from configs.runs import RunConfig
from pipelines.checks import Level
from pipelines.checks.inputs import opponents

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
REFERENCE = "opponents=[{player: reference}]"


def load(*overrides):
    return load_config(RunConfig, QUICKSTART, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        [REFERENCE],
        ["opponents=[{player: previous, lag: 3}, {player: league, draw: uniform}]", "pairing.strategy=versus"],
        ["opponents=[{player: previous}]", "sampling.candidates=1"],
        ["opponents=[{player: data}, {player: previous}]", "pairing.strategy=spin", "sampling.candidates=1"],
        [REFERENCE, "pairing.strategy=versus", "objective={name: xpo}"],
        [REFERENCE, "pairing.strategy=versus", "objective={name: nash_md}"],
        ["objective={name: nash_md}"],
        [REFERENCE, "reference={refresh: periodic, every: 4}"],
        ["opponents=[{player: model, name: a, path: /a}, {player: model, name: b, path: /b}]"],
    ],
)
def test_what_can_be_played(overrides):
    load(*overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sampling.candidates=1"], ["sampling.candidates = 1", "without opponents", "greater than or equal to 2"]),
        (["pairing.strategy=versus"], ["pairing.strategy = versus", "opponents = []"]),
        ([REFERENCE, "pairing.strategy=spin"], ["pairing.strategy = spin", "player: data", '"response"']),
        (["objective={name: xpo}"], ["objective.name = xpo", "player: reference", "pairing.strategy=versus"]),
        ([REFERENCE, "objective={name: xpo}"], ["objective.name = xpo", "now best_vs_worst"]),
        (
            ["opponents=[{player: previous}]", "pairing.strategy=versus", "objective={name: xpo}"],
            ["objective.name = xpo", "now ['previous']"],
        ),
        (
            ["opponents=[{player: previous}]", "pairing.strategy=versus", "objective={name: nash_md}"],
            ["objective.name = nash_md", "now ['previous']"],
        ),
        ([REFERENCE, "objective={name: nash_md}"], ["objective.name = nash_md", "pairing.strategy=versus"]),
        ([REFERENCE, "pairing.strategy=rejection_sampling"], ["rejection_sampling", "['reference']"]),
        (
            [REFERENCE, "reference={refresh: periodic, alpha: 0.5}"],
            ["player reference", "reference.alpha = 0.5", "reference.alpha=1"],
        ),
        (["opponents=[{player: previous}, {player: previous, lag: 2}]"], ["opponents.1", "called previous"]),
        (["opponents=[{player: model, name: league, path: /m}]"], ["opponents.0.name = league"]),
        (["opponents=[{player: model, name: policy, path: /m}]"], ["opponents.0", "the policy itself"]),
        (["opponents=[{player: previus}]"], ["opponents.0.player", "'previus'", "previous"]),
        (["opponents=[{player: previous, lagg: 2}]"], ["opponents.0.lagg", "did you mean 'lag'"]),
        (["opponents=[{player: previous, lag: 0}]"], ["opponents.0.lag", "greater than 0"]),
        (["opponents=[{player: league, draw: elo}]"], ["opponents.0.draw", "win_rate"]),
        (["opponents=[{lag: 2}]"], ["opponents.0"]),
        (
            [
                "opponents=[{player: data}]", "pairing.strategy=spin", "judge={kind: human}",
                "evaluation.judge={kind: rule, rule: 'a:b'}",
            ],
            ["pairing.strategy = spin", "judge.kind = human"],
        ),
    ],
)  # fmt: skip
def test_what_cannot_is_named_with_its_fix(overrides, words):
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    for word in words:
        assert word in str(caught.value)


def test_one_pool_serves_all_earlier_versions_and_each_model_has_its_own():
    plain = load().groups
    assert "opponents" not in plain
    past = load("opponents=[{player: previous}, {player: league}, {player: reference}, {player: data}]").groups
    assert len(past["opponents"]) == 1
    more = load("opponents=[{player: previous}, {player: model, name: a, path: /a}]", "resources.opponents.cpus=2")
    assert len(more.groups["opponents"]) == 2
    assert requested(more)["CPU"] - requested(load())["CPU"] == 4
    assert requested(more, training=False) == requested(load(), training=False)
    assert "opponents" not in load("opponents=[{player: data}]").groups


def test_a_models_path_is_relative_to_the_file():
    (player,) = load("opponents=[{player: model, name: a, path: other}]").opponents
    assert player.path == str(QUICKSTART.parent / "other")


def test_a_model_that_is_not_there_is_refused_before_the_start(tmp_path):
    absent, broken = tmp_path / "absent", tmp_path / "broken"
    broken.mkdir()
    config = load(
        f"opponents=[{{player: model, name: a, path: {absent}}}, {{player: data}},"
        f" {{player: model, name: b, path: {broken}}}]"
    )
    found = [(check.name, check.level, check.detail, check.fix) for check in opponents(config)]
    assert found[0][:3] == ("opponent a", Level.FAIL, f"{absent}: not a directory")
    assert found[0][3].startswith("set opponents.0.path")
    assert {check[0] for check in found[1:]} == {"opponent b"}
    assert f"{broken}: config.json is missing" in [check[2] for check in found]
    assert found[-1][3].startswith("set opponents.2.path")
