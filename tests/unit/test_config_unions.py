"""Sections of which there are several kinds: mistakes are named by the keys that a person wrote."""

from pathlib import Path

import pytest

from configs.judges import HumanJudge, LlmJudge, RuleJudge, is_independent
from configs.judging import Rejudge
from configs.loading import ConfigError, configure, load_config, validate
from configs.runs import RunConfig

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
RULE = "{kind: rule, rule: 'a:b'}"


def problems(*overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(RunConfig, QUICKSTART, overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("judge.kind=ruel", "judge.kind: unknown kind 'ruel'; did you mean 'rule'?"),
        ("judge.kind=reward-model", "judge.kind: unknown kind 'reward-model'; did you mean 'reward_model'?"),
        (
            "judge.kind=zzz",
            "judge.kind: unknown kind 'zzz'; known here: rule, llm, http, reward_model, implicit, human, panel, "
            "escalation",
        ),
        (
            "judge={rule: 'a:b'}",
            "judge.kind: required, but not given; known here: rule, llm, http, reward_model, implicit, human, panel, "
            "escalation",
        ),
        ("judge={kind: llm}", "judge.model: required, but not given"),
        ("judge={kind: llm, modell: m, model: m}", "judge.modell: unknown key; did you mean 'model'?"),
        (
            "judge={kind: rule, rule: 'a:b', zzz: 1}",
            "judge.zzz: unknown key; known here: max_failure_rate, kind, rule",
        ),
        (
            "evaluation.judge={kind: http, url: 'http://a', pirce_in: 1, model: m}",
            "evaluation.judge.pirce_in: unknown key; did you mean 'price_in'?",
        ),
        ("evaluation.judge.kind=htttp", "evaluation.judge.kind: unknown kind 'htttp'; did you mean 'http'?"),
        (
            f"judge={{kind: panel, members: [{{judge: {RULE}}}, {{judge: {{kind: llm, model: m, mode: 3}}}}]}}",
            "judge.members.1.judge.mode: Input should be 'pairwise' or 'pointwise'; got 3",
        ),
        (
            f"judge={{kind: escalation, first: {{kind: lm, model: m}}, then: {RULE}}}",
            "judge.first.kind: unknown kind 'lm'; did you mean 'llm'?",
        ),
        ("objective.name=kot", "objective.name: unknown name 'kot'; did you mean 'kto'?"),
        (
            "objective={name: mix, terms: [{name: dpo, bta: 1}, {name: sft}]}",
            "objective.terms.0.bta: unknown key; did you mean 'beta'?",
        ),
    ],
)
def test_mistakes_in_unions(override, line):
    assert line in problems(override)


def test_no_message_names_a_branch_that_nobody_wrote():
    lines = problems("judge={kind: llm, mode: neither, tie_band: 2, grades: x}")
    assert {line.partition(":")[0] for line in lines} == {
        "judge.model", "judge.mode", "judge.tie_band", "judge.grades",
    }  # fmt: skip


POLICY = "judge={kind: llm, model: policy}"
INITIAL = "evaluation.judge={kind: llm, model: initial}"
NONE = "evaluation.judge=null"


def test_the_policy_as_its_own_judge_takes_no_actors():
    config = load_config(RunConfig, QUICKSTART, [POLICY, INITIAL])
    assert isinstance(config.judge, LlmJudge)
    assert not is_independent(config.judge)
    assert is_independent(config.evaluation.judge)
    assert len(config.groups["judge"]) == 1  # that of the held-out answers
    panel = f"judge={{kind: panel, members: [{{judge: {{kind: llm, model: policy}}}}, {{judge: {RULE}}}]}}"
    assert len(load_config(RunConfig, QUICKSTART, [panel, INITIAL]).groups["judge"]) == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([POLICY, NONE], ["judge.model = policy without evaluation.judge", "{kind: llm, model: initial}"]),
        ([POLICY, "evaluation.judge={kind: llm, model: policy}"], ["evaluation.judge.model = policy", "=initial"]),
        (
            ["judge={kind: llm, model: policy, max_model_len: 99}", INITIAL],
            ["judge.max_model_len = 99", "set it under sampling"],
        ),
        (
            [f"judge={{kind: escalation, first: {{kind: llm, model: policy}}, then: {RULE}}}", NONE],
            ["without evaluation.judge"],
        ),
    ],
)
def test_the_policy_does_not_judge_its_own_progress(overrides, words):
    text = "\n".join(problems(*overrides))
    for word in words:
        assert word in text


def test_who_may_judge_held_out_answers():
    rule = RuleJudge(rule="a:b")
    assert is_independent(rule)
    assert not is_independent(HumanJudge(kind="human"))
    for judge, words in (
        ({"kind": "human"}, "judge.kind = human: people are asked by `rondo annotate`"),
        ({"kind": "llm", "model": "policy"}, "judge.model = policy: the policy judges while it is trained"),
    ):
        with pytest.raises(ConfigError, match=words):
            validate(Rejudge, {"judge": judge})


def test_paths_of_a_mapping_are_relative_to_where_it_lies(tmp_path):
    raw = {"judge": {"kind": "llm", "model": "models/j", "guidelines": "g.txt"}}
    config = configure(Rejudge, raw, ["judge.tie_band=0.2", "resources.judge.actors=3"], tmp_path)
    assert config.judge.model == str(tmp_path / "models/j")
    assert config.judge.guidelines == str(tmp_path / "g.txt")
    assert config.judge.tie_band == 0.2
    assert config.resources.judge.actors == 3
    assert raw["judge"] == {"kind": "llm", "model": "models/j", "guidelines": "g.txt"}  # nothing is changed in place
