"""Files in and out: what is exported can be trained from, and comes back as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from configs.judges import HumanJudge
from pipelines.annotate.command import open_target, people_of
from pipelines.annotate.exchange import FORMATS, export_labels, import_labels, user_id
from pipelines.annotate.items import AnnotationError, Choice
from pipelines.annotate.reading import read_gold, read_items
from pipelines.annotate.store import Store, sqlite_url
from pipelines.cli import main
from pipelines.data.annotations import parse_argilla, parse_label_studio
from pipelines.data.containers import records, spans
from pipelines.data.records import Graded, Preference, detect, parse_label, parse_preference
from pipelines.data.report import Reason, Unfit
from pipelines.data.rules import DataRules
from tests.unit.annotating import Site, item, store

RULES = DataRules()


def labelled(directory: Path, **rules: Any) -> Site:
    """Six pairs by two people: agreed, agreed on the second, a tie, both bad, a conflict, not yet labelled by both."""
    site = Site(store(directory, 6, overlap=2, **rules))
    ann, bob = site.visitor("ann"), site.visitor("bob")
    for name, visitor, choices in (("Ann", ann, "abtxa"), ("Bob", bob, "abtxb")):
        for choice in choices:
            if choice in "ab":
                visitor.choose(
                    choice, rationale=f"{name} says {choice}", written="best answer" if visitor is ann else ""
                )
            else:
                visitor.label({"t": "tie", "x": "both_bad"}[choice])
    ann.choose("a")
    return site


def trainable(path: Path) -> dict[str, Preference | Graded | Reason]:
    """What `rondo offline` makes of a file, by prompt and response."""
    found: dict[str, Preference | Graded | Reason] = {}
    for span in spans(path):
        for place, record in records(span):
            parse: Any = {
                "pairs": lambda r: parse_preference(r, RULES, chat=True),
                "labels": lambda r: parse_label(r, RULES),
                "argilla": lambda r: parse_argilla(r, RULES),
                "label_studio": lambda r: parse_label_studio(r, RULES),
            }[detect(record)]
            try:
                found[place] = parse(record)
            except Unfit as unfit:
                found[place] = unfit.reason
    return found


@pytest.mark.parametrize(("format", "suffix"), [("jsonl", ".jsonl"), ("argilla", ".json"), ("label_studio", ".json")])
def test_exports_are_what_training_reads(tmp_path, format, suffix) -> None:
    site = labelled(tmp_path)
    path = tmp_path / f"out{suffix}"
    export_labels(site.store, path, format)
    parsed = list(trainable(path).values())
    preferences = [(p.chosen, p.rejected, p.probability) for p in parsed if isinstance(p, Preference)]
    assert ("answer 0a", "answer 0b", 1.0) in preferences
    assert ("answer 1b", "answer 1a", 1.0) in preferences
    assert parsed.count(Reason.TIE) == 3  # tie, both bad, and the conflict, in which votes are even
    written = ("best answer", "answer 0b", 1.0) in preferences
    assert written == (format == "jsonl")
    unlabelled = ("answer 5a", "answer 5b", 1.0) in preferences
    assert unlabelled == (format != "jsonl")  # one of two people has answered: undecided here, a vote there


@pytest.mark.parametrize("format", FORMATS)
def test_what_was_exported_comes_back(tmp_path, format) -> None:
    site = labelled(tmp_path)
    path = tmp_path / "out.json"
    export_labels(site.store, path, format)
    (tmp_path / "other").mkdir()
    other = store(tmp_path / "other", 0, overlap=2)
    first = import_labels(other, path)
    again = import_labels(other, path)
    assert (again.items, again.labels) == (0, 0)
    assert first.items == (5 if format == "jsonl" else 6)
    decided = {d.item.responses[0].text: d.decision for d in other_decided(other)}
    assert decided["answer 0a"].outcome is Choice.FIRST
    assert decided["answer 1a"].outcome is Choice.SECOND
    assert decided["answer 2a"].outcome is Choice.TIE
    assert decided["answer 4a"].probability == 0.5
    other.close()


def other_decided(other: Store) -> list[Any]:
    """Items of files belong to no step; give them one."""
    from sqlalchemy import update

    from pipelines.annotate.tables import items

    other.write(lambda db: db.execute(update(items).values(step=1)))
    return other.unconsumed(1)


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_imported_into_its_own_store_adds_nothing(tmp_path, format) -> None:
    site = labelled(tmp_path)
    export_labels(site.store, tmp_path / "out.json", format)
    done = import_labels(site.store, tmp_path / "out.json")
    assert (done.items, done.labels) == (0, 0)


def test_jsonl_keeps_everything_that_was_said(tmp_path) -> None:
    site = labelled(tmp_path)
    export_labels(site.store, tmp_path / "one.jsonl", "jsonl")
    (tmp_path / "other").mkdir()
    other = store(tmp_path / "other", 0, overlap=2)
    import_labels(other, tmp_path / "one.jsonl")
    export_labels(other, tmp_path / "two.jsonl", "jsonl")
    one, two = ([json.loads(x) for x in (tmp_path / f).read_text().splitlines()] for f in ("one.jsonl", "two.jsonl"))
    for a, b in zip(one, two, strict=True):
        assert {k: v for k, v in a.items() if k in ("prompt", "chosen", "rejected", "probability", "outcome")} == {
            k: v for k, v in b.items() if k in ("prompt", "chosen", "rejected", "probability", "outcome")
        }
        keep = ("annotator", "choice", "swapped", "seconds", "strength", "rationale", "written", "review")
        said = [[{k: x[k] for k in keep} for x in r.get("labels", [])] for r in (a, b)]
        assert said[0] == said[1]
    other.close()


def test_labels_made_in_argilla_come_back(tmp_path) -> None:
    site = Site(store(tmp_path, 2, overlap=2))
    path = tmp_path / "argilla.json"
    export_labels(site.store, path, "argilla")
    made = json.loads(path.read_text())
    made[0]["responses"] = {"preference": [{"value": "response_b", "user_id": "u1"}, {"value": "tie", "user_id": "u2"}]}
    made[1]["responses"] = [
        {"question_name": "preference", "value": "response_a", "user_id": user_id("ann"), "status": "submitted"},
        {"question_name": "preference", "value": "response_b", "user_id": "u2", "status": "draft"},
    ]
    path.write_text(json.dumps(made))
    site.store.add_people(["ann"], "annotator")
    assert import_labels(site.store, path).labels == 3
    (decided,) = site.store.unconsumed(1)
    assert (decided.decision.outcome, decided.decision.probability) == (Choice.TIE, 0.25)
    assert site.visitor("bob").next() == item(1).id  # the draft was no label
    assert site.visitor("ann").post("next")["item"] is None  # she labelled it over there


def test_labels_made_in_label_studio_come_back(tmp_path) -> None:
    site = Site(store(tmp_path, 2))
    path = tmp_path / "tasks.json"
    export_labels(site.store, path, "label_studio")
    made = json.loads(path.read_text())
    chosen = {"type": "pairwise", "from_name": "c", "to_name": "response_a,response_b", "value": {"selected": "right"}}
    made[0]["annotations"] = [{"result": [chosen], "completed_by": {"id": 3}, "lead_time": 4.5}]
    made[1]["annotations"] = [{"result": [], "was_cancelled": True, "completed_by": 3}]
    path.write_text(json.dumps(made))
    assert import_labels(site.store, path).labels == 1
    assert site.store.unconsumed(1)[0].decision.outcome is Choice.SECOND
    assert site.store.unconsumed(1)[0].labels[0].seconds == 4.5


def test_unary_labels_round_trip(tmp_path) -> None:
    site = Site(store(tmp_path, 3, mode="labels"))
    ann = site.visitor("ann")
    ann.label("up", written="even better")
    ann.label("down")
    ann.label("cannot_judge")
    done = export_labels(site.store, tmp_path / "out.jsonl", "jsonl")
    assert (done.written, done.left_out) == (3, 1)
    graded = [(g.response, g.desirable) for g in trainable(tmp_path / "out.jsonl").values() if isinstance(g, Graded)]
    assert graded == [("answer 0a", True), ("even better", True), ("answer 1a", False)]
    export_labels(site.store, tmp_path / "out.json", "argilla")
    graded = [(g.response, g.desirable) for g in trainable(tmp_path / "out.json").values() if isinstance(g, Graded)]
    assert graded == [("answer 0a", True), ("answer 1a", False)]
    assert import_labels(site.store, tmp_path / "out.json").labels == 0
    with pytest.raises(AnnotationError, match="comparisons"):
        export_labels(site.store, tmp_path / "ls.json", "label_studio")


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    return path


def test_plain_files_of_items(tmp_path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", {"prompt": "q", "response_a": "x", "response_b": "y"},
                  {"prompt": [{"role": "user", "content": "q"}], "response_a": "x", "response_b": "z"})  # fmt: skip
    assert [[r.text for r in i.item.responses] for i in read_items(pairs)] == [["x", "y"], ["x", "z"]]
    candidates = write(tmp_path / "candidates.jsonl", {"prompt": "q", "candidates": ["x", "y", "x", "z"]})
    assert len(read_items(candidates)) == 3  # every two different ones
    assert len(read_items(candidates, "labels")) == 3  # each alone
    old = write(tmp_path / "old.jsonl", {"prompt": "q", "chosen": "x", "rejected": "y"})
    assert read_items(old)[0].item == read_items(pairs)[0].item
    unary = write(tmp_path / "unary.jsonl", {"prompt": "q", "completion": "x", "label": True})
    assert read_items(unary)[0].item.mode == "labels"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"prompt": "q", "response_a": "x"}, '1: "response_b" is missing'),
        ({"prompt": "q", "candidates": ["x"]}, "comparing takes two"),
        ({"text": "x"}, "no known format"),
        ({"prompt": 3, "response_a": "x", "response_b": "y"}, '"prompt" must be'),
    ],
)
def test_a_file_that_holds_no_items_is_refused(tmp_path, line, words) -> None:
    with pytest.raises(AnnotationError, match=words):
        read_items(write(tmp_path / "bad.jsonl", line))


def test_gold_items(tmp_path) -> None:
    path = write(tmp_path / "gold.jsonl", {"prompt": "q", "response_a": "x", "response_b": "y", "answer": "b"},
                 {"prompt": "q", "chosen": "x", "rejected": "z"})  # fmt: skip
    judge = HumanJudge(kind="human", gold=str(path))
    assert [g.choice for g in read_gold(judge)] == [Choice.SECOND, Choice.FIRST]
    with pytest.raises(AnnotationError, match="mode = labels"):
        read_gold(judge.model_copy(update={"mode": "labels"}))
    bad = write(tmp_path / "bad.jsonl", {"prompt": "q", "response_a": "x", "response_b": "y"})
    with pytest.raises(AnnotationError, match="answer"):
        read_gold(judge.model_copy(update={"gold": str(bad)}))


# -- the command -----------------------------------------------------------------------------------------------------


def rondo(*words: object) -> str:
    done = CliRunner().invoke(main, ["annotate", *map(str, words)])
    assert done.exit_code == 0, done.output
    return done.output


def refused(*words: object) -> str:
    done = CliRunner().invoke(main, ["annotate", *map(str, words)])
    assert done.exit_code == 1, done.output
    return done.output


def test_a_file_becomes_a_store_beside_it(tmp_path) -> None:
    path = write(tmp_path / "pairs.jsonl", {"prompt": "q", "response_a": "x", "response_b": "y"})
    out = rondo(path, "annotators=[ann]", "overlap=2", "--link", "ann", "--port", 8701)
    assert out.startswith("http://127.0.0.1:8701/#")
    store_file = tmp_path / "pairs.annotations.db"
    first = Store(sqlite_url(store_file))
    assert first.state().task.overlap == 2
    assert rondo(store_file, "--export", tmp_path / "out.json", "--format", "argilla").startswith("1 records")
    write(path, {"prompt": "q", "response_a": "x", "response_b": "y"}, {"prompt": "r", "chosen": "x", "rejected": "y"})
    assert open_target(str(path), "", []).counts().items == 2
    assert "0 new items and 0 new labels" in rondo(path, "--import", tmp_path / "out.json")
    first.close()


def test_erasing_somebody(tmp_path) -> None:
    site = labelled(tmp_path)
    before = site.store.counts()
    assert "6 labels" in rondo(tmp_path / "labels.db", "--erase", "ann")
    assert site.store.counts() == before
    site.store.close()
    stored = b"".join(p.read_bytes() for p in tmp_path.glob("labels.db*"))
    assert b"Bob says" in stored
    for gone in (b"best answer", b"Ann says"):
        assert gone not in stored
    with Store(sqlite_url(tmp_path / "labels.db")) as erased:
        assert [name for name, _ in people_of(erased)] == ["bob"]
    assert "no annotator is called 'ann'" in refused(tmp_path / "labels.db", "--erase", "ann")
    assert "known are bob" in refused(tmp_path / "labels.db", "--link", "ann")


def test_what_cannot_be_opened_is_said(tmp_path) -> None:
    assert "no run, database or file" in refused("nothing", "--root", tmp_path)
    assert "no such file" in refused(tmp_path / "absent.db")
    assert "mysql" in refused("mysql://host/db")
    path = write(tmp_path / "pairs.jsonl", {"prompt": "q", "response_a": "x", "response_b": "y"})
    assert "overlap" in refused(path, "overlap=0")
    assert "overlaps" in refused(path, "overlaps=2")
    assert "qualification = 3" in refused(path, "qualification=3")
    assert "guidelines" in refused(path, "guidelines=/absent.md")
    assert "KEY=VALUE" in refused(path, "overlap")
    rondo(path, "annotators=[ann]", "--link", "ann")
    assert "files of items" in refused(tmp_path / "pairs.annotations.db", "overlap=2")
    assert "suffix" in refused(path, "--export", tmp_path / "x.csv")


def test_a_store_of_another_owner_or_mode_is_refused(tmp_path) -> None:
    path = write(tmp_path / "pairs.jsonl", {"prompt": "q", "response_a": "x", "response_b": "y"})
    open_target(str(path), "", []).close()
    (tmp_path / "pairs.annotations.db").rename(tmp_path / "other.annotations.db")
    path.rename(tmp_path / "other.jsonl")
    with pytest.raises(AnnotationError, match=r"belongs to pairs\.jsonl, not to other\.jsonl"):
        open_target(str(tmp_path / "other.jsonl"), "", [])
