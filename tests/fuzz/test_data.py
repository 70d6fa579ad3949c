"""Files of preference data, of what people are to judge, and of what they have judged."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from configs.judges import HumanJudge
from configs.loading import load_config
from configs.runs import RunConfig
from pipelines.annotate.exchange import import_labels
from pipelines.annotate.reading import read_gold
from pipelines.annotate.reading import read_items as read_tasks
from pipelines.checks import inputs
from pipelines.data import DataRules, read_items
from pipelines.data.encode import Encoder
from pipelines.judging.score import _choices, _holds_candidates
from pipelines.look.inspect_sources import read_corpus
from tests.fuzz.hostile import encoded, garbled, line_files, mutants
from tests.fuzz.trial import fuzzed, rows, tried
from tests.tiny import _tokenizer
from tests.unit.annotating import store

DATA = Path(__file__).parents[1] / "data"
ROOT = DATA.parents[1]


def _shared(name: str) -> list[dict]:
    text = (DATA / name).read_text()
    return json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]


CHAT = [{"role": "user", "content": "Which city?"}, {"role": "assistant", "content": "Paris."}]
RECORDS = [
    {"id": "1", "prompt": "Which city?", "chosen": "Paris.", "rejected": "Rome.", "margin": 0.5, "probability": 0.9},
    {"chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "Rome."}], "score_chosen": 2,
     "score_rejected": 1},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"},
    {"prompt": "Which city?", "completion": "Paris.", "label": True},
    {"messages": CHAT, "tools": [{"name": "f"}]},
    {"prompt": [CHAT[0]], "chosen": [CHAT[1]], "rejected": "Rome.", "tied": True},
    *_shared("argilla_v1.jsonl")[:4],
    *_shared("argilla_v2.json")[:4],
    *_shared("label_studio.json")[:4],
]  # fmt: skip
TASKS = [
    {"id": "x", "prompt": "Which city?", "response_a": "Paris.", "response_b": "Rome.", "labels": [
        {"annotator": "ada", "choice": "first", "swapped": False, "seconds": 2.5, "strength": 2, "rationale": "r",
         "written": "w", "guidelines": "g", "created": 1.0, "review": False}]},
    {"prompt": "Which city?", "candidates": ["Paris.", "Rome.", "Bonn."]},
    {"prompt": "Which city?", "response": "Paris.", "labels": [{"annotator": "bo", "choice": "up"}]},
    {"prompt": "Which city?", "response_a": "Paris.", "response_b": "Rome.", "answer": "a"},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def tokenizer():
    return _tokenizer()


FORMATS = st.just("auto") | st.sampled_from(["auto", "pairs", "labels", "sft", "argilla", "label_studio"])


def _read(path: Path, tokenizer, format: str):
    encoder = Encoder(tokenizer, 512, [2], DataRules(format=format, max_prompt_tokens=64, max_response_tokens=32))
    return read_items(path, encoder)


@fuzzed(0.12, line_files(RECORDS), FORMATS)
def test_pair_files(folder, tokenizer, data, format):
    path = folder / "pairs.jsonl"
    path.write_bytes(data)
    found = tried("pair file", lambda: _read(path, tokenizer, format), "pairs.jsonl", "no record can be used")
    if found is not None:
        assert all(r.token_ids for item in found.items for r in item.responses)
    tried("inspected file", lambda: read_corpus(path, DataRules(format=format)), "pairs.jsonl")


@fuzzed(0.04, encoded(mutants([RECORDS, RECORDS[:2]])))
def test_arrays_of_pairs(folder, tokenizer, data):
    path = folder / "pairs.json"
    path.write_bytes(data)
    tried("JSON array", lambda: _read(path, tokenizer, "auto"), "pairs.json", "no record can be used")


def _parquet(folder: Path) -> bytes:
    table = pa.table(
        {"prompt": ["a", "b", None], "chosen": ["x", "y", "z"], "rejected": ["u", "v", "w"], "margin": [1.0, None, 2.0]}
    )
    pq.write_table(table, folder / "whole.parquet", row_group_size=2)
    return (folder / "whole.parquet").read_bytes()


@fuzzed(0.04, st.data())
def test_parquet(folder, tokenizer, data):
    path = folder / "pairs.parquet"
    path.write_bytes(data.draw(garbled([_parquet(folder)])))
    tried("Parquet file", lambda: _read(path, tokenizer, "pairs"), "pairs.parquet", "no record can be used")


@fuzzed(0.08, line_files(TASKS + RECORDS), st.sampled_from([None, "pairs", "labels"]))
def test_files_of_what_people_judge(folder, data, mode):
    path = folder / "tasks.jsonl"
    path.write_bytes(data)
    tried("annotation items", lambda: read_tasks(path, mode), "tasks.jsonl")
    judge = HumanJudge(kind="human", gold=str(path), mode=mode or "pairs")
    tried("gold items", lambda: read_gold(judge), "tasks.jsonl")


CHOICES = [
    {"id": "1", "prompt": "Which city?", "responses": ["Paris.", "Rome."]},
    {"prompt": [CHAT[0]], "responses": ["a"]},
]


@fuzzed(0.03, line_files(CHOICES))
def test_candidates_to_score(folder, tokenizer, data):
    path = folder / "candidates.jsonl"
    path.write_bytes(data)
    holds = _holds_candidates(path)
    assert holds in (True, False)
    encoder = Encoder(tokenizer, 512, [2], DataRules(max_prompt_tokens=64, max_response_tokens=32))
    tried("candidates to score", lambda: _choices(path, encoder), "candidates.jsonl")


HEADER = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"format": "pt"}}


@fuzzed(0.03, st.data())
def test_model_directories(folder, data):
    """What the doctor reads of a model before anything starts."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    header = data.draw(encoded(mutants([HEADER])))
    whole = {
        "model.safetensors": len(header).to_bytes(8, "little") + header + bytes(24),
        "config.json": b'{"vocab_size": 512, "eos_token_id": 2}',
        "tokenizer_config.json": b'{"chat_template": "{{ messages }}"}',
        "model.safetensors.index.json": b'{"weight_map": {"w": "model.safetensors"}}',
    }
    victim = data.draw(st.sampled_from(sorted(whole)))
    whole[victim] = data.draw(garbled([whole[victim]]) | st.just(whole[victim]) | encoded(mutants([HEADER])))
    for name, content in whole.items():
        (model / name).write_bytes(content)
    config = load_config(RunConfig, ROOT / "configs" / "quickstart.yaml", [f"model.path={model}"])
    tried("model directory", lambda: [*inputs.model(config), inputs.parameters(config)])


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    made = store(tmp_path_factory.mktemp("store"), items=2)
    yield made
    made.close()


@fuzzed(0.05, line_files(TASKS + RECORDS))
def test_imports_of_labels(folder, labels, data):
    path = folder / "labels.jsonl"
    path.write_bytes(data)
    before = rows(labels)
    if tried("imported labels", lambda: import_labels(labels, path), "labels.jsonl", "annotator") is None:
        assert rows(labels) == before
