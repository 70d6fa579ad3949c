"""Judging a run anew, without a cluster: what is asked, what is compared, what is left alone."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from actors.judges.combined import Comparing
from actors.judges.errors import JudgeError
from configs.judging import Rejudge
from configs.loading import ConfigError, load_config, scientific, validate
from configs.runs import RunConfig
from pipelines.data import DataError
from pipelines.data.runs import journal, recorded_rules
from pipelines.judging import rejudge as module
from pipelines.judging.rejudge import matches_of, rejudge, rejudge_config
from pipelines.judging.remembered import Memory
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.record import RunRecord, read_record, write_record
from pipelines.look.tables import show_rejudged
from preference.pairing import next_matches
from preference.types import CandidateGroup, JudgedGroup, JudgeFailure, JudgeInfo, Match, Outcome, Verdict
from tests.factories import JUDGE, candidate, prompt
from tests.unit.test_config import QUICKSTART

NEW = JudgeInfo("new", "hash of the new one")
CONFIG = validate(Rejudge, {"judge": {"kind": "rule", "rule": "tests.rules:vowels"}})
PROMPTS = {name: prompt(name) for name in ("a", "b", "c", "h0", "h1")}


def group(name, size):
    return CandidateGroup(PROMPTS[name], tuple(candidate(name, i) for i in range(size)))


def won(match, p, judge=JUDGE):
    outcome = Outcome.TIE if p == 0.5 else Outcome.FIRST if p > 0.5 else Outcome.SECOND
    return Verdict(*match.ids, outcome, p, judge)


class New:
    """Prefers the candidate of the higher index; stops the process after as many questions as it is told."""

    name = "new"

    def __init__(self, stop_after=10**6):
        self.asked, self.stop_after, self.closed = [], stop_after, False

    async def compare(self, matches):
        found = []
        for m in matches:
            if len(self.asked) >= self.stop_after:
                raise JudgeError("the money is spent")
            self.asked.append(m.ids)
            found.append(won(m, 0.2 if m.first.index < m.second.index else 0.8, NEW))
        return found

    async def ready(self):
        pass

    def close(self):
        self.closed = True


class Quiet:
    def __init__(self):
        self.warned = []

    def stage(self, *args):
        pass

    def message(self, text):
        pass

    warning = message


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """A run of which a judge preferred the lower index, three candidates a prompt; two held-out prompts."""
    path = tmp_path / "run"
    path.mkdir()
    config = load_config(RunConfig, QUICKSTART, [f"model.path={tmp_path}"])
    write_record(path, RunRecord("h", scientific(config), "", 1, 0))
    rules = recorded_rules(read_record(path))
    ledger = Ledger(path)
    for step, name in enumerate("ab", start=1):
        judged = JudgedGroup(group(name, 3), ())
        while wanted := next_matches(judged, rules):
            said = tuple(won(m, 0.9 if m.first.index < m.second.index else 0.1) for m in wanted)
            judged = replace(judged, judgements=(*judged.judgements, *said))
        ledger.judged(step, judged)
        ledger.prepared(step, ["x"])
    ledger.judged(3, JudgedGroup(group("c", 2), ()))  # this step was under way as the run was stopped
    for step in (0, 2):
        answers = [replace(candidate(h, 5 * step), id=f"{h}@{step}") for h in ("h0", "h1")]
        ledger.evaluated(step, [CandidateGroup(PROMPTS[a.prompt_id], (a,)) for a in answers])
    ledger.close()
    memory = Memory(path / "ledger" / "heldout-judge.jsonl")
    for h in ("h0", "h1"):
        verdict = Verdict(f"{h}@2", f"{h}@0", Outcome.SECOND, 0.1, JUDGE)
        memory.keep(h, (verdict,))
    memory.close()
    training = {k: v for k, v in PROMPTS.items() if len(k) == 1}
    heldout = {k: v for k, v in PROMPTS.items() if len(k) == 2}
    monkeypatch.setattr(module, "_prompts", lambda *_: (training, heldout))
    monkeypatch.setattr("pipelines.cluster.connect", lambda: None)
    monkeypatch.setattr("actors.quiet.quiet_driver", lambda path: None)
    return path


@pytest.fixture
def again(run_dir, monkeypatch):
    def judged(judge, **options):
        monkeypatch.setattr(module, "start_judge", lambda *_: Comparing(judge))
        return asyncio.run(rejudge(run_dir, CONFIG, Quiet(), **options))

    return judged


def saved_groups(run_dir):
    return [r for r in journal(run_dir / "ledger" / "judgements.jsonl") if r["step"] < 3]


def journals(run_dir):
    return {p.name: p.read_bytes() for p in (run_dir / "ledger").iterdir()}


def test_the_old_matches_are_asked_first_and_then_what_the_new_judge_needs(run_dir, again):
    before = journals(run_dir)
    judge = New()
    report = again(judge)
    old = [tuple(sorted((j["first_id"], j["second_id"]))) for r in saved_groups(run_dir) for j in r["judgements"]]
    assert {tuple(sorted(ids)) for ids in judge.asked} >= set(old)
    assert {i for ids in judge.asked for i in ids if i.startswith("c")} == set()  # its step was not complete
    assert judge.closed
    v = report.drift.verdicts
    assert (v.compared, v.flipped, v.agreement.rate) == (len(old), len(old), 0.0)
    assert report.drift.pairs.flipped == report.drift.pairs.old == 2
    assert [c.change for c in report.drift.changed] == pytest.approx([0.7, 0.7])
    assert report.old.judges == (JUDGE,)
    assert report.new.judges == (NEW,)
    # Held out: the old judge preferred the initial answers, the new one those of step 2.
    assert report.heldout_step == 2
    assert (report.old.heldout.losses, report.new.heldout.wins) == (2, 2)
    assert journals(run_dir) == before
    saved = json.loads((run_dir / "rejudged" / report.directory.rpartition("/")[2] / "report.json").read_text())
    assert saved["drift"]["verdicts"]["flipped"] == len(old)
    assert saved["new"]["metrics"]["agreement"] is None  # not a number
    console = Console(file=io.StringIO(), width=130)
    show_rejudged(report, console)
    shown = console.file.getvalue()
    for words in (
        "run judged anew: 2 prompts",
        "hash of the new one",
        "flipped",
        "Cohen's kappa",
        "0.70",
        report.directory,
    ):
        assert words in shown


def test_an_interrupted_rejudging_goes_on_from_what_it_paid_for(again):
    first = New(stop_after=3)
    with pytest.raises(JudgeError, match="the money is spent"):
        again(first)
    second = New()
    report = again(second)
    assert set(first.asked) & set(second.asked) == set()
    assert report.remembered == 3
    assert report.asked == len(second.asked)
    third = New()
    assert again(third).drift == report.drift
    assert third.asked == []


def test_pairs_are_written_as_offline_training_reads_them(again, run_dir, tmp_path):
    assert again(New()).pairs == ""
    report = again(New(), apply=True)
    lines = [json.loads(line) for line in Path(report.pairs).read_text().splitlines()]
    assert [(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in lines] == [("text 2", "text 0")] * 2

    from pipelines.look.inspect_sources import read_corpus

    assert len(read_corpus(tmp_path / report.pairs).pairs) == 2


def test_a_run_that_goes_on_or_has_judged_nothing_is_refused(run_dir, again, tmp_path, monkeypatch):
    owner = Ledger(run_dir)
    try:
        with pytest.raises(DataError, match="in use by"):
            again(New())
    finally:
        owner.close()
    (run_dir / "ledger" / "steps.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match="nothing has been judged yet"):
        again(New())


def test_matches_are_those_that_were_judged_each_once():
    three = group("a", 3)
    a, b, c = three.candidates
    match = Match(three.prompt, a, b)
    said = (won(match, 0.9), won(match, 0.8), JudgeFailure((a.id, c.id), Outcome.FAILED, "boom", JUDGE))
    other = won(Match(three.prompt, replace(a, id="gone"), b), 0.9)
    assert [m.ids for m in matches_of(JudgedGroup(three, (*said, other)))] == [match.ids]


def test_whose_opinion_is_wanted(run_dir, tmp_path):
    record = RunRecord("h", scientific(load_config(RunConfig, QUICKSTART)), "", 1, 0)
    own = rejudge_config(run_dir, record, None, [], tmp_path)
    assert own.judge == load_config(RunConfig, QUICKSTART).judge
    assert rejudge_config(run_dir, record, None, ["judge.max_failure_rate=0.5"], tmp_path).judge.max_failure_rate == 0.5
    (tmp_path / "j").mkdir()
    (tmp_path / "j" / "g.txt").write_text("be kind")
    section = tmp_path / "j" / "judge.yaml"
    section.write_text("kind: llm\nmodel: m\nguidelines: g.txt\n")
    whole = tmp_path / "j" / "config.yaml"
    whole.write_text(
        "judge: {kind: llm, model: m, guidelines: g.txt}\nresources: {judge: {actors: 2}}\nrun: {name: x}\n"
    )
    for file in (section, whole):
        judge = rejudge_config(run_dir, record, str(file), ["judge.tie_band=0.2"], tmp_path).judge
        assert (judge.model, judge.guidelines) == (str(tmp_path / "j" / "m"), str(tmp_path / "j" / "g.txt"))
        assert judge.tie_band == 0.2
    assert rejudge_config(run_dir, record, str(whole), [], tmp_path).resources.judge.actors == 2
    with pytest.raises(ConfigError, match=r"judge\.modell: unknown key; did you mean 'model'"):
        rejudge_config(run_dir, record, None, ["judge={kind: llm, model: m, modell: n}"], tmp_path)
