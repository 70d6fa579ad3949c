"""`rondo score` without a cluster: what is read, what is written, what is said; mistakes are named."""

import json

import pytest

from configs.judges import ImplicitJudge, RewardModelJudge
from configs.loading import ConfigError
from pipelines.data import DataError, DataRules, read_items
from pipelines.data.encode import model_encoder
from pipelines.judging.score import ChoiceEntry, PairEntry, read_entries, scoring_judge, summary
from preference.types import Pair
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


def written(path, *records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def pairs(tmp_path, model, *records):
    loaded = read_items(written(tmp_path / "pairs.jsonl", *records), model_encoder(model, DataRules()))
    return [PairEntry(item) for item in loaded.items if isinstance(item, Pair)]


PAIRS = [{"id": f"p{i}", "prompt": f"Which {i}?", "chosen": "This one.", "rejected": "None."} for i in range(4)]


def test_scored_pairs_are_pairs_again_with_the_models_margin(tmp_path, model):
    """Those the model disagrees with, or sees as equal, are left out by the reader; those without a reward stay."""
    entries = pairs(tmp_path, model, *PAIRS)
    values = [[2.5, 1.0], [0.0, 1.0], [1.0, 1.0], ["too long", 1.0]]
    lines = [entry.line(found) for entry, found in zip(entries, values, strict=True)]
    assert (lines[0]["score_chosen"], lines[0]["score_rejected"]) == (2.5, 1.0)
    assert lines[3]["errors"] == {0: "too long"}
    again = read_items(written(tmp_path / "scored.jsonl", *lines), model_encoder(model, DataRules()))
    assert [(i.id, i.margin) for i in again.items] == [("p0", 1.5), ("p3", 1.0)]
    before = {e.pair.id: [r.token_ids for r in e.pair.responses] for e in entries}
    assert all([r.token_ids for r in i.responses] == before[i.id] for i in again.items)


def test_the_summary_of_pairs_counts_wins_ties_and_losses(tmp_path, model):
    entries = pairs(tmp_path, model, *PAIRS)
    said = summary(entries, [[2.0, 1.0], [0.0, 1.0], [1.0, 1.0], ["too long", 1.0]])
    assert "accuracy 0.500" in said
    assert "(1 W / 1 T / 1 L of 3)" in said
    assert "mean margin +0.000" in said


def test_there_is_nothing_to_be_right_about_in_a_tie(tmp_path, model):
    entries = pairs(tmp_path, model, PAIRS[0], {**PAIRS[1], "tied": True})
    assert "(1 W / 0 T / 0 L of 1)" in summary(entries, [[2.0, 1.0], [0.0, 1.0]])
    assert entries[1].line([0.0, 1.0])["tied"] is True
    assert summary(entries[1:], [[0.0, 1.0]]) == "no pair with a winner has both rewards"


def test_candidates_keep_their_record_and_get_rewards_and_the_best(tmp_path, model):
    record = {"id": 7, "prompt": "Which\u2028one?", "responses": ["A.", " ", "B.", "B."], "source": "x"}
    conversation = {"prompt": [{"role": "user", "content": "Which?"}], "responses": ["C."]}
    entries = read_entries(written(tmp_path / "c.jsonl", record, conversation), model, None)  # type: ignore[arg-type]
    assert all(isinstance(e, ChoiceEntry) for e in entries)
    assert [c.text for c in entries[0].group.candidates] == ["A.", "B.", "B."]
    line = entries[0].line([1.0, 3.0, 3.0])
    assert line == {**record, "rewards": [1.0, None, 3.0, 3.0], "best": 2, "errors": {1: "empty_response"}}
    assert entries[1].line(["too long"])["best"] is None
    assert "+1.000 over the mean of 1 prompts" in summary(entries, [[0.0, 2.0, 1.0], ["too long"]])


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": "x", "responses": []}, "at least one text"),
        ({"prompt": "x", "responses": "A."}, "at least one text"),
        ({"responses": ["A."]}, 'missing "prompt"'),
        ({"prompt": "x", "responses": [" "]}, "no response can be scored: empty_response"),
        ({"prompt": "", "responses": ["A."]}, "no_prompt"),
        ([1], "at least one text"),
    ],
)
def test_mistakes_in_candidates_are_named_with_their_line(tmp_path, model, record, words):
    good = {"prompt": "x", "responses": ["A."]}
    with pytest.raises(DataError) as caught:
        read_entries(written(tmp_path / "c.jsonl", good, record), model, None)  # type: ignore[arg-type]
    assert "c.jsonl:2" in str(caught.value)
    assert words in str(caught.value)


def test_the_options_belong_to_the_kind_of_model(tmp_path):
    judge = scoring_judge("m", None, {"max_tokens": 100})
    assert isinstance(judge, RewardModelJudge)
    assert judge.max_tokens == 100
    assert isinstance(scoring_judge("m", "r", {"beta": 0.5}), ImplicitJudge)
    with pytest.raises(ConfigError, match=r"--beta: not an option of a reward model \(no --reference\)"):
        scoring_judge("m", None, {"beta": 0.5})
    with pytest.raises(ConfigError, match=r"--max-tokens: not an option of implicit rewards"):
        scoring_judge("m", "r", {"max_tokens": 100})
    with pytest.raises(ConfigError, match=r"beta: .*greater than 0"):
        scoring_judge("m", "r", {"beta": -1.0})
    with pytest.raises(ConfigError, match=r"max_tokens \(2048\) exceeds judge.batch_tokens \(100\)"):
        scoring_judge("m", None, {"batch_tokens": 100})
