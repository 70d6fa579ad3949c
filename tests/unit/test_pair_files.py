"""Whole files: every container, every record counted once, errors that name file and place, a seeded split."""

import json
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data import Change, DataError, DataRules, LoadReport, Reason, Tally, containers, read_items, split
from pipelines.data.containers import records, spans
from pipelines.data.encode import Encoder, model_encoder
from pipelines.data.gather import Items, gather
from pipelines.data.load import encode_span
from pipelines.data.report import REASON_OF_FATE, Kept
from preference.types import Fate, Labelled, Pair
from tests.tiny import _tokenizer

DATA = Path(__file__).parents[1] / "data"
PAIRS = [
    {"prompt": f"Say {w}.", "chosen": f"{w}!", "rejected": "No."}
    for w in ("Grüße", "naïve", "東京", "👋🏽", "a\u2028b")
]
LABELS = [{"prompt": f"Say {w}.", "completion": f"{w}!", "label": w != "b"} for w in "abc"]


@cache
def tokenizer():
    return _tokenizer()


def encoder(**rules: object) -> Encoder:
    return Encoder(tokenizer(), 512, [], DataRules(**rules))  # type: ignore[arg-type]


def write(path: Path, rows: list) -> Path:
    match path.suffix:
        case ".json":
            path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
        case _:
            path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


def load(path: Path, **rules: object) -> Items:
    return read_items(path, encoder(**rules))


def counts(report: LoadReport) -> dict[str, int]:
    return {str(reason): tally.count for reason, tally in report.dropped.items()}


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".parquet", ".JSONL"])
def test_every_container_gives_the_same_pairs(tmp_path, suffix):
    items = load(write(tmp_path / f"pairs{suffix}", PAIRS))
    expected = load(write(tmp_path / "expected.jsonl", PAIRS))
    assert items.items == expected.items
    assert [i.chosen.text for i in items.items] == [p["chosen"] for p in PAIRS]
    assert (items.kind, items.report.format, items.report.total, items.report.kept) == ("pairs", "pairs", 5, 5)


def test_conversations_survive_parquet(tmp_path):
    ask, yes, no = (
        {"role": r, "content": c, "name": None} for r, c in (("user", "?"), ("assistant", "Yes"), ("assistant", "No"))
    )
    rows = [
        {"chosen": [ask, yes], "rejected": [ask, no], "margin": 2.0},
        {"chosen": [ask, no], "rejected": [ask, yes], "margin": None},
    ]
    items = load(write(tmp_path / "p.parquet", rows)).items
    assert [(i.chosen.text, i.margin) for i in items] == [("Yes", 2.0), ("No", 1.0)]


def test_labels_and_demonstrations_are_of_kind_labels(tmp_path):
    items = load(write(tmp_path / "kto.jsonl", LABELS))
    assert (items.kind, items.report.format) == ("labels", "labels")
    assert [i.desirable for i in items.items if isinstance(i, Labelled)] == [True, False, True]
    sft = load(write(tmp_path / "sft.jsonl", LABELS), format="sft")  # the label is not asked for
    assert sft.report.format == "sft"
    assert all(i.desirable for i in sft.items if isinstance(i, Labelled))


@pytest.mark.parametrize(
    ("name", "format", "kept", "dropped"),
    [
        ("label_studio.json", "label_studio", 2, {"tie": 1, "unannotated": 1}),
        ("argilla_v1.jsonl", "argilla", 1, {"tie": 1, "unannotated": 1}),
        ("argilla_v2.json", "argilla", 2, {"unannotated": 1}),
    ],
)
def test_exports_of_annotation_tools(name, format, kept, dropped):
    items = load(DATA / name)
    assert (items.report.format, items.report.kept, counts(items.report)) == (format, kept, dropped)
    assert all(isinstance(i, Pair) for i in items.items)


def test_everything_left_out_or_changed_is_counted_with_its_places(tmp_path):
    rows = [
        PAIRS[0],
        {"prompt": "Say it.", "chosen": " ", "rejected": "b"},
        {"prompt": "Say it.", "chosen": "b", "rejected": "b"},
        {**PAIRS[0], "id": "again"},
        {"prompt": "Say it.", "chosen": "a", "rejected": "b", "margin": 0},
        {"prompt": "Say it.", "chosen": "c<|im_end|>", "rejected": "d"},
        {"prompt": "Say it.", "chosen": "long " * 40, "rejected": "b"},
        {"prompt": "Say it. " * 40, "chosen": "a", "rejected": "b"},
    ]
    path = write(tmp_path / "mixed.jsonl", rows)
    report = load(path, max_prompt_tokens=40, max_response_tokens=20).report
    assert (report.total, report.kept) == (8, 2)
    assert counts(report) == {"tie": 1, "empty_response": 1, "identical": 1, "duplicate": 1, "prompt_too_long": 1,
                              "response_too_long": 1}  # fmt: skip
    assert report.dropped[Reason.DUPLICATE] == Tally(1, (f"{path}:4 (of {path}:1)",))
    assert report.changed == {Change.DOUBLE_EOS: Tally(1, (f"{path}:6",))}
    text = "\n".join(report.lines())
    assert f"{path}: 2 of 8 records kept (pairs)" in text
    assert f"1 left out, empty_response: {path}:2" in text
    cut = load(path, max_prompt_tokens=40, max_response_tokens=20, truncation="keep_start").report
    assert cut.changed[Change.RESPONSE_CUT].first == (f"{path}:7",)
    cut = load(path, max_prompt_tokens=40, max_response_tokens=60, truncation="cut_prompt_start").report
    assert cut.changed[Change.PROMPT_CUT].first == (f"{path}:8",)


ROW = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["Say it.", "Say it twice. " * 9]),
     "chosen": st.sampled_from(["", "a", "b", "c<|im_end|>", "long " * 30]),
     "rejected": st.sampled_from(["a", "b", "long " * 29])},
    optional={"margin": st.sampled_from([-1, 0, 1]), "probability": st.sampled_from([0.2, 0.5, 0.9])},
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.lists(ROW, min_size=1, max_size=12),
    st.sampled_from(["drop", "keep_start", "cut_prompt_start"]),
    st.integers(1, 200),
)
def test_counts_add_up_however_the_file_is_cut(tmp_path_factory, rows, truncation, size):
    path = write(tmp_path_factory.getbasetemp() / "rows.jsonl", rows)
    made = encoder(truncation=truncation, max_prompt_tokens=30, max_response_tokens=20)
    parts = spans(path, size)
    assert [p for s in parts for p, _ in records(s)] == [f"{path}:{i}" for i in range(1, len(rows) + 1)]
    chunks = [encode_span(s, made) for s in parts]
    if not any(isinstance(o, Kept) for c in chunks for o in c.outcomes):
        with pytest.raises(DataError, match="no record can be used"):
            gather(str(path), chunks)
        return
    items = gather(str(path), chunks)
    report = items.report
    assert report.total == len(rows) == report.kept + sum(t.count for t in report.dropped.values())
    assert report.kept == len(items.items) == len({i.id for i in items.items})
    assert all(len(t.first) <= 5 for t in report.dropped.values())
    assert items == read_items(path, made)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"prompt": "p", "chosen": "a", "rejected": "b"}\n\n{"prompt": "p"}\n',
         r"a.jsonl:3: missing chosen, rejected; found prompt; expected preferences"),
        ("a.jsonl", '{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": \n', r"a.jsonl:2: not JSON: .*col"),
        ("a.jsonl", "[1]\n", r"a.jsonl:1: expected a JSON object, found list"),
        ("a.jsonl", b'{"prompt": "\xff"}\n', r"a.jsonl:1: not UTF-8 text: invalid start byte"),
        ("a.jsonl", '{"question": "?"}\n', r"a.jsonl:1: no known format has the fields question; known are"),
        ("a.jsonl", "\n \n", r"a.jsonl holds no records"),
        ("a.jsonl", "", r"a.jsonl is empty"),
        ("a.json", "[]", r"a.json holds no records"),
        ("a.json", '[{"prompt": "p", "completion": 3}]', r'a.json: record 1: "completion" must be'),
        ("a.json", '{"prompt": "p"}', r"expected a JSON array of records, found dict; .*named .jsonl"),
        ("a.json", '{"prompt": "p"}\n{"prompt": "p"}', r"a.json: not JSON: Extra data at line 2, column 1; .*jsonl"),
        ("a.parquet", "no", r"a.parquet is not a Parquet file"),
        ("a.csv", "x", r"the suffix must be one of .jsonl, .ndjson, .json, .parquet"),
        ("a.jsonl", '{"id": 1, "prompt": "p", "completion": "a"}\n{"id": 1, "prompt": "p", "completion": "b"}\n',
         r'a.jsonl:2: id "1" was already used in .*a.jsonl:1 for something else'),
        ("a.jsonl", '{"prompt": "p", "completion": " "}\n', r"no record can be used:\n.*0 of 1 records kept"),
    ],
)  # fmt: skip
def test_unusable_files_name_the_place_and_the_fix(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        load(path)


def test_a_missing_file_and_a_malformed_parquet_row_are_named(tmp_path):
    with pytest.raises(DataError, match=r"absent.jsonl: No such file"):
        load(tmp_path / "absent.jsonl")
    rows = [*PAIRS, {"prompt": "p", "chosen": "a", "rejected": None}]
    with pytest.raises(DataError, match=r"p.parquet: row 6: missing rejected"):
        load(write(tmp_path / "p.parquet", rows))


def test_formats_and_kinds_are_not_mixed(tmp_path):
    made = encoder()
    path = write(tmp_path / "a.jsonl", [*PAIRS[:1], *LABELS[:1]])
    with pytest.raises(DataError, match=r"a.jsonl:2: missing chosen, rejected; found completion, label, prompt"):
        read_items(path, made)
    with pytest.raises(DataError, match=r"a.jsonl:2: records of format labels after records of format pairs"):
        gather("a", [encode_span(s, made) for s in spans(path, 1)])
    exported = {"fields": {"prompt": "p", "response": "a"}, "responses": {"ok": [{"value": "good"}]}}
    compared = {"fields": {"prompt": "p", "response-1": "a", "response-2": "b"}, "responses": {"ok": [{"value": "1"}]}}
    with pytest.raises(DataError, match=r"b.jsonl:2 holds a preference, .*b.jsonl:1 a label"):
        load(write(tmp_path / "b.jsonl", [exported, compared]))


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path):
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(json.dumps(p) for p in PAIRS).encode())
    assert load(path).report.kept == 5


def test_parquet_spans_are_whole_row_groups(tmp_path, monkeypatch):
    path = write(tmp_path / "p.parquet", PAIRS)  # groups of 2, 2 and 1 rows
    monkeypatch.setattr(containers, "SPAN_ROWS", 3)
    parts = spans(path)
    assert [(s.start, s.stop, s.first) for s in parts] == [(0, 2, 1), (2, 3, 5)]
    assert [p for s in parts for p, _ in records(s)] == [f"{path}: row {i}" for i in range(1, 6)]


def test_token_ids_are_shared_between_items(tmp_path):
    rows = [
        {"prompt": "Say the capital of France.", "chosen": f"Paris {i}", "rejected": f"capital {i}"} for i in range(3)
    ]
    items = load(write(tmp_path / "a.jsonl", rows)).items
    assert items[0].prompt is items[1].prompt
    large = [t for i in items for r in i.responses for t in r.token_ids if t > 256]
    assert len({id(t) for t in large}) == len(set(large))


def test_the_split_is_seeded_and_goes_by_prompt(tmp_path):
    rows = [{"prompt": f"Say {p}.", "chosen": f"yes {n}", "rejected": "no"} for n in range(3) for p in "abcdefgh"]
    items = load(write(tmp_path / "a.jsonl", rows)).items
    train, heldout = split(items, 0.25, seed=1)
    assert (len(train), len(heldout)) == (18, 6)
    assert not {i.prompt.id for i in train} & {i.prompt.id for i in heldout}
    assert [i for i in items if i in train] == list(train)
    assert split(items, 0.25, seed=1) == (train, heldout)
    assert any(split(items, 0.25, seed=s)[1] != heldout for s in range(2, 6))
    assert split(items, 0, seed=1) == (items, ())
    with pytest.raises(ValueError, match="one side of the split would be empty"):
        split(items, 0.01, seed=1)
    with pytest.raises(ValueError, match="below 1"):
        split(items, 1, seed=1)


def test_a_report_that_does_not_add_up_is_refused():
    with pytest.raises(ValueError, match=r"1 kept \+ 1 left out is not 3 records"):
        LoadReport("a", "pairs", 3, 1, {Reason.TIE: Tally(1, ("a:1",))}, {})


def test_every_fate_of_the_loop_has_a_reason():
    assert set(REASON_OF_FATE) == set(Fate) - {Fate.TRAINED}


def model(path: Path, config: dict, generation: dict | None = None) -> str:
    tokenizer().save_pretrained(path)
    (path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return str(path)


def test_the_models_configuration_gives_vocabulary_and_stop_ids(tmp_path):
    made = model_encoder(
        model(tmp_path / "a", {"text_config": {"vocab_size": 512}}, {"eos_token_id": [2, 0]}), DataRules()
    )
    assert (made.vocab_size, made.notes) == (512, ())
    with pytest.raises(DataError, match="has no vocab_size"):
        model_encoder(model(tmp_path / "b", {}), DataRules())
    with pytest.raises(DataError, match=r"absent: no usable model configuration"):
        model_encoder(str(tmp_path / "absent"), DataRules())
