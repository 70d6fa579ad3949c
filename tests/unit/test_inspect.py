"""`rondo inspect` as people use it: on files of every kind and on a run's ledger; hostile text stays text."""

import io
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from pipelines.cli import main
from pipelines.data import DataError
from pipelines.ledger.ledger import Ledger, RunRecord, write_record
from pipelines.look.inspect import inspect, render
from pipelines.look.inspect_figures import figures
from pipelines.look.inspect_sources import read_corpus
from preference.diagnostics import diagnose
from tests.factories import judged
from tests.unit.test_pair_runs import FIELDS

SHIPPED = Path(__file__).parents[2] / "configs" / "prompts" / "sentiment.pairs.jsonl"
DATA = Path(__file__).parents[1] / "data"
HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">{{ 7 * 7 }}{% raw %}\u202egnp.exe \x1b[31mred'


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def shown(path, **options):
    """(diagnosis, what the terminal shows)."""
    console = Console(file=io.StringIO(), width=100)
    return inspect(path, console, **options), console.file.getvalue()


def biased(path, count=120):
    """Chosen is the longer of two in all but every eighth pair."""
    rng = random.Random(0)
    records = []
    for i in range(count):
        short, long = (" ".join(f"w{rng.randrange(900)}" for _ in range(n)) for n in (8, 20))
        chosen, rejected = (short, long) if i % 8 == 0 else (long, short)
        records.append({"prompt": f"question {i}", "chosen": chosen, "rejected": rejected})
    return write(path, records)


def test_a_planted_length_bias_in_a_file_is_reported(tmp_path):
    diagnosis, screen = shown(biased(tmp_path / "pairs.jsonl"))
    assert diagnosis.length.longest_wins.hits == 105
    assert re.search(r"longest wins\W+88% \[80%, 92%\] of 120", screen)
    assert "warning: longest wins 88%" in screen
    assert "rewarding length" in screen


@pytest.mark.parametrize("name", ["argilla_v1.jsonl", "argilla_v2.json", "label_studio.json"])
def test_whatever_the_readers_read_can_be_inspected(name):
    corpus = read_corpus(DATA / name)
    assert corpus.pairs
    assert sum(corpus.fates.values()) >= len(corpus.pairs)
    assert diagnose(corpus).diversity.responses == len(corpus.answers)


def test_labels_and_left_out_records_are_counted(tmp_path):
    labels = [{"prompt": "p", "completion": f"c{i}", "label": i % 2 == 0} for i in range(4)]
    _, screen = shown(write(tmp_path / "labels.jsonl", labels))
    assert re.search(r"labelled responses\W+2 desirable, 2 undesirable", screen)
    records = [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "a", "rejected": "c", "margin": 0},
    ]
    diagnosis, screen = shown(write(tmp_path / "pairs.jsonl", records))
    assert diagnosis.corpus.fates == {"kept": 1, "tie": 1}
    assert re.search(r"records: tie\W+1 \(50%\)", screen)


def run(path, steps, prepared=99):
    path.mkdir()
    write_record(path, RunRecord("hash", dict(FIELDS) | {"prompts.train": "gone.jsonl (abc)"}, "", 1, 0))
    ledger = Ledger(path)
    for step, groups in steps.items():
        for group in groups:
            ledger.judged(step, group)
        if step <= prepared:
            ledger.prepared(step, [])
    return ledger


def test_a_run_under_way_is_read_from_its_ledger(tmp_path):
    """The lock is held, a step is incomplete, and the prompts are not at hand: none of it is needed."""
    ledger = run(
        tmp_path / "run",
        {
            1: [judged([0.1, 0.9], "a"), judged([0.5, 0.55], "b")],
            2: [judged([0.3, 0.2, 0.9], "a")],
            3: [judged([1.0, 0.0])],
        },
        prepared=2,
    )
    diagnosis, screen = shown(tmp_path / "run")
    ledger.close()
    assert diagnosis.corpus.fates == {"trained": 2, "tied": 1}
    assert diagnosis.corpus.prompts == 3
    assert len(diagnosis.corpus.answers) == 7
    assert re.search(r"prompts: trained\W+2 \(67%\)", screen)
    assert re.search(r"prompts in all\W+3", screen)
    assert re.search(r"judgements\W+7", screen)


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(DataError, match="there is no such file, nor a run"):
        read_corpus(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no run\.json"):
        read_corpus(tmp_path / "empty")
    run(tmp_path / "fresh", {}).close()
    with pytest.raises(DataError, match="nothing has been judged yet"):
        read_corpus(tmp_path / "fresh")
    (tmp_path / "offline").mkdir()
    write_record(tmp_path / "offline", RunRecord("hash", {"data.train": "pairs.jsonl (1)"}, "", 1, 0))
    with pytest.raises(DataError, match=r"trained from files.*inspect pairs.jsonl"):
        read_corpus(tmp_path / "offline")
    with pytest.raises(DataError, match=r"bad.jsonl:2: .*missing rejected|bad.jsonl:2"):
        read_corpus(write(tmp_path / "bad.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"chosen": "a"}]))
    file = biased(tmp_path / "pairs.jsonl", 8)
    with pytest.raises(DataError, match=r"--html .*No such file or directory"):
        shown(file, html=tmp_path / "missing" / "page.html")


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.text, self.attributes = [], [], []

    def handle_starttag(self, tag, attributes):
        self.found.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text.append(data)


def test_hostile_text_is_text_on_the_page_and_on_the_terminal(tmp_path):
    records = [{"prompt": HOSTILE, "chosen": HOSTILE + " long" * 30, "rejected": HOSTILE.upper()} for _ in range(1)]
    records += [{"prompt": "p", "chosen": f"**{HOSTILE}**", "rejected": HOSTILE}]
    file = write(tmp_path / "<b>pairs.jsonl", records)
    diagnosis, screen = shown(file, html=tmp_path / "page.html")
    assert "\x1b" not in screen
    assert "\u202e" not in screen
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert not {"script", "b"} & set(tags.found)
    assert [
        value for name, value in tags.attributes if name == "src" and not value.startswith("data:image/png;base64,")
    ] == []
    assert not any(name.startswith("on") for name, _ in tags.attributes)
    text = "".join(tags.text)
    assert '<script>alert(1)</script><img src=x onerror="alert(2)">{{ 7 * 7 }}{% raw %} gnp.exe  [31mred' in text
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert "Preference data: <b>pairs.jsonl" in text
    assert "default-src 'none'" in page
    assert diagnosis.formatting_only.hits == 1


def test_the_page_holds_everything_it_needs(tmp_path):
    diagnosis, _ = shown(biased(tmp_path / "pairs.jsonl"))
    page = render(diagnosis)
    tags = Tags()
    tags.feed(page)
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert tags.found.count("img") == len(figures(diagnosis)) == 1  # one margin, one fate, no scores: lengths alone
    assert "longest wins 88%" in "".join(tags.text)


def test_figures_of_a_run_and_of_next_to_nothing(tmp_path):
    ledger = run(
        tmp_path / "run", {1: [judged([0.1, 0.9], "a"), judged([0.5, 0.9, 0.7], "b", tokens=5), judged([0, 0], "c")]}
    )
    drawn = figures(diagnose(read_corpus(tmp_path / "run")))
    ledger.close()
    assert set(drawn) == {"lengths", "margins", "scores", "coverage"}
    for figure in drawn.values():
        figure.savefig(io.BytesIO())
    tied = run(tmp_path / "tied", {1: [judged([0.5, 0.5], "a")]})
    drawn = figures(diagnose(read_corpus(tmp_path / "tied")))
    tied.close()
    assert set(drawn) == {"scores"}
    drawn["scores"].savefig(io.BytesIO())


def test_the_command(tmp_path):
    page = tmp_path / "page.html"
    done = CliRunner().invoke(main, ["inspect", str(SHIPPED), "--html", str(page)])
    assert done.exit_code == 0, done.output
    assert "longest wins" in done.output
    assert page.read_text().startswith("<!doctype html>")
    done = CliRunner().invoke(main, ["inspect", "no-such-run", "--root", str(tmp_path)])
    assert done.exit_code == 1
    assert "error:" in done.output
    assert "no-such-run" in done.output
