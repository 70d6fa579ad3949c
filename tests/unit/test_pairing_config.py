"""``pairing:`` becomes the rules of pairing, and what cannot work is refused with its fix."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from configs.loading import ConfigError, load_config, validate
from configs.runs import OfflineConfig, RunConfig
from configs.schema import Pairing, Sampling
from pipelines.data import Items
from pipelines.data.report import LoadReport
from pipelines.offline import refuse_unfit_items
from pipelines.pairing import pairing_rules
from preference.pairing import PairingRules
from preference.types import Labelled
from tests.factories import scored_pair

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def test_every_knob_reaches_the_rules():
    of_sampling = {"missing_eos", "missing_eos_penalty", "seed"}
    assert {f.name for f in fields(PairingRules)} == set(Pairing.model_fields) | of_sampling
    assert pairing_rules(Pairing(), Sampling(), 0) == PairingRules()
    pairing = Pairing(strategy="all_pairs", max_pairs=3, ties="keep", threshold=0.5)
    rules = pairing_rules(pairing, Sampling(missing_eos="penalise", missing_eos_penalty=2.0), 7)
    assert (rules.strategy, rules.max_pairs, rules.ties, rules.threshold) == ("all_pairs", 3, "keep", 0.5)
    assert (rules.missing_eos, rules.missing_eos_penalty, rules.seed) == ("penalise", 2.0, 7)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["pairing.ties=keep"], ["pairing.ties = keep", "objective.name = dpo", "davidson, rao_kupper"]),
        (["pairing.strategy=labels"], ["pairing.strategy = labels", "objective.name = dpo", "objective.name=kto"]),
        (
            ["pairing.strategy=labels", "objective={name: sft}", "pairing.ties=keep"],
            ["objective.name = sft knows no ties"],
        ),
        (
            ["objective={name: mix, terms: [{name: rao_kupper}, {name: sft}]}", "pairing.ties=keep"],
            ["objective.name = sft knows no ties"],
        ),
        (["pairing.max_pairs=2"], ["pairing.max_pairs = 2", "best_vs_worst", "all_pairs, rejection_sampling"]),
        (["pairing.max_pairs=0", "pairing.strategy=all_pairs"], ["pairing.max_pairs", "greater than 0"]),
        (["pairing.strategy=west_of_n"], ["pairing.strategy", "best_vs_worst"]),
        (["pairing.threshold=median"], ["pairing.threshold", "median"]),
    ],
)
def test_impossible_combinations_are_named_with_their_fix(overrides, words):
    with pytest.raises(ConfigError) as caught:
        load_config(RunConfig, QUICKSTART, overrides)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective={name: rao_kupper}", "pairing.ties=keep"],
        ["objective={name: davidson}"],
        ["objective={name: kto}", "pairing.strategy=labels", "pairing.threshold=0.5"],
        ["objective={name: kto}"],  # a pair is two labels
        ["pairing.strategy=all_pairs", "pairing.max_pairs=4"],
    ],
)
def test_possible_ones_are_not(overrides):
    load_config(RunConfig, QUICKSTART, overrides)


def test_ties_of_a_file_need_an_objective_that_knows_them():
    pair = replace(scored_pair(0, 3, 2, 2).item, tied=True)
    items = Items((pair,), "pairs", LoadReport("file.jsonl", "pairs", 1, 1, {}, {}))
    raw = {"run": {"name": "t", "root": "/tmp"}, "model": {"path": "/m"}, "data": {"train": "/t"}}
    refuse_unfit_items(validate(OfflineConfig, raw | {"objective": {"name": "davidson"}}), items)
    with pytest.raises(ConfigError, match=r"1 pairs of file.jsonl are ties, .* dpo .*\(davidson, rao_kupper\)"):
        refuse_unfit_items(validate(OfflineConfig, raw), items)


def test_labels_are_refused_where_pairs_are_needed_and_what_fits_is_said():
    one = Labelled("r", scored_pair(0, 3, 2, 2).item.prompt, scored_pair(0, 3, 2, 2).item.chosen, True)
    items = Items((one,), "labels", LoadReport("file.jsonl", "labels", 1, 1, {}, {}))
    raw = {"run": {"name": "t", "root": "/tmp"}, "model": {"path": "/m"}, "data": {"train": "/t"}}
    refuse_unfit_items(validate(OfflineConfig, raw | {"objective": {"name": "kto"}}), items)
    with pytest.raises(ConfigError, match=r"dpo learns from pairs, but file.jsonl holds labels: .*kto"):
        refuse_unfit_items(validate(OfflineConfig, raw), items)
