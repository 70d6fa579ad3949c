"""`rondo report` and `rondo compare` on run directories as drivers leave them: under way, stopped, finished."""

import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from pipelines.cli import main
from pipelines.data import DataError
from pipelines.ledger.lock import RunLock
from pipelines.ledger.record import RunRecord, write_record
from pipelines.look import plots
from pipelines.look.compare import compare, differences, load_runs
from pipelines.look.compare import render as render_comparison
from pipelines.look.report import render
from pipelines.tracking.events import (
    Began,
    DataFile,
    Ended,
    Evaluated,
    EventLog,
    HeldOutLoss,
    Read,
    Stepped,
    Table,
    Tagged,
)
from preference.reports import Judged, PromptScores, StageTime
from preference.winrate import outcomes, win_rate
from tests.unit.test_plots import FULL

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">{{ 7 * 7 }}\u202e\x1b[31m'


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found, self.texts, self.attributes = list[str](), list[str](), list[tuple[str, str | None]]()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


def evaluated(step: int, after: list[float], judge: str = "rule", heldout: str = "h") -> Evaluated:
    before = [0.5] * len(after)
    known = [(a, b) for a, b in zip(after, before, strict=True) if math.isfinite(a)]
    rate = win_rate([a for a, _ in known], [b for _, b in known])
    metrics = {
        "eval/win_rate": rate.rate, "eval/win_rate_low": rate.low, "eval/win_rate_high": rate.high,
        "eval/win_rate_length_controlled": 0.5, "eval/score_before": 0.5,
        "eval/score_after": sum(a for a, _ in known) / len(known),
        "eval/length_before": 40.0, "eval/length_after": 42.0, "eval/kl": 3.0,
    }  # fmt: skip
    prompts = tuple(PromptScores(f"h{i}", (b,), (a,)) for i, (a, b) in enumerate(zip(after, before, strict=True)))
    judged = Judged(judge, rate, 0.5, 0.5, metrics["eval/score_after"])
    return Evaluated(step, 9000, f"0.{step}", metrics, (judged,), heldout, prompts)


def run(directory: Path, *events, steps: int = 3, finished: int = 0, beta: str = "0.1", words: str = "fine") -> Path:
    """A run directory with ``steps`` steps, and an evaluation table that says ``words``."""
    directory.mkdir(parents=True)
    fields = {"objective.beta": beta, "run.name": directory.name, "model.path": words, "run.seed": "0"}
    write_record(directory, RunRecord("abc123", fields, "0" * 32, 1, steps, finished=finished))
    log = EventLog(directory)
    log.append(Began(1, 1000, {"run.steps": "3", "git.commit": "deadbeef"}))
    log.append(Tagged(1, {"cluster.nodes": "2"}))
    log.append(Read((DataFile("train", "/train.jsonl", "d1", 12, "training"),)))
    for step in range(1, steps + 1):
        stages = tuple(
            StageTime(n, 2.0, 9, 10.0 * step + i, 10.0 * step + i + 2) for i, n in enumerate(("sample", "train"))
        )
        log.append(Stepped(step, 2000, f"0.{step}", plots.step_metrics(FULL), stages, {0: 2, 1: 1}, {words: "hash"}))
    table = {
        "columns": ["step", "prompt", "before", "after", "score_before", "score_after"],
        "data": [[3, words, words, words, 0.1, 0.9]],
    }
    log.append(Table("samples/eval-000003.json", json.dumps(table)))
    for event in events:
        log.append(event)
    log.close()
    return directory


def test_the_page_of_a_finished_run_shows_everything(tmp_path: Path) -> None:
    directory = run(tmp_path / "done", evaluated(3, [0.9, 0.8, 0.2, 0.5]), Ended(1, 5000, "FINISHED"), finished=3)
    page = Tags(render(directory))
    assert page.found.count("img") == 10
    assert [v for n, v in page.attributes if n == "src" and not str(v).startswith("data:image/png;base64,")] == []
    for words in (
        "Run done", "Finished: 3 of 3 steps, weights v0.3", "abc123", "0.625 [0.2", "2 / 1 / 1", "KL 3.0",
        "training: train", "12 rows, d1", "cluster.nodes", "deadbeef", "beta", "finished",
    ):  # fmt: skip
        assert words in page.text, words


def test_hostile_text_is_text(tmp_path: Path) -> None:
    directory = run(tmp_path / "<b>run", evaluated(3, [0.9, 0.2], judge=HOSTILE), words=HOSTILE)
    html = render(directory)
    page = Tags(html)
    assert not {"script", "b", "a", "iframe", "link"} & set(page.found)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert "\u202e" not in html
    assert "\x1b" not in html
    assert "default-src 'none'" in html
    assert page.text.count("<script>alert(1)</script>") >= 6  # judge, field, definition, prompt, before, after
    assert "{{ 7 * 7 }}" in page.text
    assert "Run <b>run" in page.text


def test_stopped_and_running_runs_are_said_to_be_so(tmp_path: Path) -> None:
    stopped = run(tmp_path / "stopped", Ended(1, 5000, "KILLED"), steps=2)
    page = Tags(render(stopped)).text
    assert "Stopped after 2 of 3 steps" in page
    assert "killed" in page
    killed = run(tmp_path / "killed", steps=2)  # kill -9: nobody wrote down the end
    assert "no end was noted" in Tags(render(killed)).text
    lock = RunLock(killed)
    try:
        assert "Under way: 2 of 3 steps so far" in Tags(render(killed)).text
    finally:
        lock.close()


def test_training_from_files_has_its_loss_instead_of_win_rates(tmp_path: Path) -> None:
    metrics = {
        "heldout/loss": 0.31,
        "heldout/accuracies": 0.75,
        "heldout/accuracies_low": 0.6,
        "heldout/accuracies_high": 0.9,
    }
    page = Tags(render(run(tmp_path / "offline", HeldOutLoss(3, 1, metrics)))).text
    assert "0.3100" in page
    assert "0.750 [0.600, 0.900]" in page


def test_what_is_no_run_or_measured_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"run\.json"):
        render(tmp_path / "empty")
    write_record(tmp_path / "empty", RunRecord("abc", {}, "", 1, 0))
    with pytest.raises(DataError, match=r"events\.jsonl.*nothing was measured"):
        render(tmp_path / "empty")


def test_two_runs_are_compared_prompt_by_prompt(tmp_path: Path) -> None:
    better, worse = [0.9, 0.8, 0.7, 0.6] * 10, [0.4, 0.8, 0.3, 0.6] * 10
    worse[0] = math.nan  # the judge failed
    one = run(tmp_path / "one", evaluated(3, worse), finished=3)
    two = run(tmp_path / "two", evaluated(3, better), beta="0.3", finished=3)
    (found,) = differences(load_runs([one, two]))
    assert (found.run, found.judge, found.win_rate.n) == ("two", "rule", 39)
    known = [i for i in range(40) if math.isfinite(worse[i])]
    won = [outcomes([x[i] for i in known], [0.5] * 39).mean() for x in (worse, better)]
    assert found.win_rate.mean == pytest.approx(won[1] - won[0])
    assert found.score.mean == pytest.approx(sum(better[i] - worse[i] for i in known) / 39)
    assert found.win_rate.excludes_zero
    console = Console(file=io.StringIO(), width=140)
    compare([one, two], console, tmp_path / "page.html")
    screen = console.file.getvalue()
    assert "objective.beta" in screen
    assert "run.seed" not in screen  # it is the same
    assert "0.3" in screen
    page = Tags((tmp_path / "page.html").read_text())
    assert page.found.count("img") == 5
    assert "Difference to one, prompt by prompt" in page.text


def test_runs_on_other_prompts_are_not_compared_prompt_by_prompt(tmp_path: Path) -> None:
    one = run(tmp_path / "one", evaluated(3, [0.9, 0.2]))
    two = run(tmp_path / "two", evaluated(3, [0.9, 0.2], heldout="other"))
    three = run(tmp_path / "three")
    runs = load_runs([one, two, three])
    assert differences(runs) == []
    page = Tags(render_comparison(runs)).text
    assert "different held-out prompts" in page
    assert "Not finished: one, two, three" in page
    with pytest.raises(DataError, match="two runs or more"):
        load_runs([one])
    with pytest.raises(DataError, match="given twice"):
        load_runs([one, one])


def test_hostile_names_and_judges_are_text_in_comparisons(tmp_path: Path) -> None:
    one = run(tmp_path / "a", evaluated(3, [0.9, 0.2], judge=HOSTILE), words=HOSTILE)
    two = run(tmp_path / "<b>x", evaluated(3, [0.9, 0.2], judge=HOSTILE))
    html = render_comparison(load_runs([one, two]))
    assert not {"script", "b"} & set(Tags(html).found)
    assert "\u202e" not in html
    console = Console(file=io.StringIO(), width=140)
    compare([one, two], console)
    assert "\x1b" not in console.file.getvalue()


def test_the_commands(tmp_path: Path) -> None:
    run(tmp_path / "one", evaluated(3, [0.9, 0.2]))
    run(tmp_path / "two", evaluated(3, [0.9, 0.8]))
    done = CliRunner().invoke(main, ["report", "one", "--root", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "one" / "report.html").read_text().startswith("<!doctype html>")
    done = CliRunner().invoke(
        main, ["compare", "one", "two", "--root", str(tmp_path), "--html", str(tmp_path / "c.html")]
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "c.html").exists()
    for words in (["report", "none"], ["compare", "one", "none"], ["sync", "none"]):
        done = CliRunner().invoke(main, [*words, "--root", str(tmp_path)])
        assert done.exit_code == 1
        assert "error:" in done.output
    done = CliRunner().invoke(
        main, ["report", "one", "--root", str(tmp_path), "--html", str(tmp_path / "no" / "page.html")]
    )
    assert done.exit_code == 1
    assert "--html" in done.output
