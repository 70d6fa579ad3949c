"""The arena over a judge that says what a test has planted: rounds, identical answers, failures, players of a run."""

import asyncio
import io
import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from actors.faults import Faults
from actors.judges.protocol import Arbiter, Ruling
from actors.weights import WeightWriter
from configs.loading import ConfigError, flatten, load_config, scientific
from configs.runs import RunConfig
from pipelines.ledger.record import RunRecord, write_record
from pipelines.ledger.recorded import arena_config, recorded_sections
from pipelines.look.output import write_json
from pipelines.look.tables import show_arena
from pipelines.play import arena
from pipelines.play.arena import report_of
from pipelines.play.contestants import Contestant, contestants
from pipelines.play.matches import ROUND, play
from preference.types import JudgeFailure, Outcome, Verdict, Version
from tests.factories import JUDGE, candidate, prompt
from tests.unit.test_config import QUICKSTART


class Silent:
    def stage(self, *args):
        pass

    message = warning = stage


class Planted(Arbiter):
    """Prefers by the players' strengths, at random; fails at prompts that are told."""

    def __init__(self, strength, fails=(), price=0.5):
        super().__init__("planted")
        self.strength, self.fails, self.asked, self.price = strength, fails, [], price

    async def rule(self, step, matches):
        found = []
        for m in matches:
            self.asked.append(m.ids)
            if m.prompt.id in self.fails:
                found.append(Ruling(JudgeFailure(m.ids, Outcome.FAILED, "boom", JUDGE, cost=self.price)))
                continue
            gap = self.strength[m.first.player] - self.strength[m.second.player]
            won = random.Random(str(m.ids)).random() < 1 / (1 + math.exp(-gap))
            p = 0.8 if won else 0.2
            found.append(Ruling(Verdict(*m.ids, Outcome.FIRST if won else Outcome.SECOND, p, JUDGE, cost=self.price)))
        return found


def answers(names, prompts, text=lambda name, prompt: f"{name} says"):
    def one(name, p):
        return replace(candidate(p.id), id=f"{name}/{p.id}", player=name, text=text(name, p.id))

    return {name: {p.id: one(name, p) for p in prompts} for name in names}


def players(*names):
    return [Contestant(name, None, name) for name in names]


PROMPTS = [prompt(f"p{i:02}") for i in range(40)]


def played(judge, found, certain=False):
    return asyncio.run(play(judge, PROMPTS, found, Silent(), certain=certain))


def test_the_ranking_is_found_with_fewer_matches_and_the_report_counts_them(tmp_path):
    names = ["initial", "b", "c", "d"]
    judge = Planted({"initial": 0.0, "b": 4.0, "c": 8.0, "d": 12.0})
    games = played(judge, answers(names, PROMPTS))
    report = report_of("planted", len(PROMPTS), players(*names), games, len(judge.asked), tmp_path, 1.0)
    assert [r.player for r in report.ratings] == ["d", "c", "b", "initial"]
    assert report.everybody == 40 * 6
    assert report.judged == len(judge.asked) == len(set(judge.asked)) < report.everybody / 3
    assert report.cost == pytest.approx(0.5 * len(judge.asked))
    assert (report.anchor, report.ratings[-1].rating, report.ratings[-1].low) == ("initial", 1000.0, 1000.0)
    assert sum(m.prompts for m in report.meetings) == report.judged
    assert all(r.wins + r.ties + r.losses == r.games for r in report.ratings)
    write_json(tmp_path / "report.json", report)
    assert json.loads((tmp_path / "report.json").read_text())["ratings"][0]["player"] == "d"


def test_the_same_answer_twice_is_a_tie_that_nobody_is_asked_about(tmp_path):
    judge = Planted({"a": 0.0, "b": 0.0})
    games = played(judge, answers(["a", "b"], PROMPTS, lambda name, p: "same" if p < "p30" else name))
    assert len(judge.asked) == 10
    assert sum(g.identical for g in games) == 30
    report = report_of("planted", 40, players("a", "b"), games, 10, tmp_path, 1.0)
    assert report.anchor == ""
    assert [m.identical for m in report.meetings] == [30]
    assert sum(r.rating for r in report.ratings) == pytest.approx(2000)


@pytest.mark.parametrize(("certain", "scores"), [(True, {0.2, 0.8}), (False, {0.0, 1.0})])
def test_a_judges_probability_counts_where_it_has_one(certain, scores):
    judge = Planted({"a": 0.0, "b": 0.0})
    assert {g.game.score for g in played(judge, answers(["a", "b"], PROMPTS), certain)} == scores


def test_failures_are_counted_and_are_no_games(tmp_path):
    judge = Planted({"a": 0.0, "b": 9.0}, fails=[p.id for p in PROMPTS[:4]])
    games = played(judge, answers(["a", "b"], PROMPTS))
    report = report_of("planted", 40, players("a", "b"), games, len(judge.asked), tmp_path, 1.0)
    assert report.failed == report.meetings[0].failed == 4
    assert report.meetings[0].games == len(games) - 4
    assert len(games) % ROUND == 0


def test_a_judge_that_fails_at_everything_gives_no_table(tmp_path):
    from actors.judges.errors import JudgeError

    judge = Planted({"a": 0.0, "b": 9.0}, fails=[p.id for p in PROMPTS])
    games = played(judge, answers(["a", "b"], PROMPTS))
    assert len(games) == 40
    with pytest.raises(JudgeError, match="failed at all 40 matches"):
        report_of("planted", 40, players("a", "b"), games, 40, tmp_path, 1.0)


def test_answers_are_sampled_once_and_a_prompt_that_is_too_long_for_one_is_nobodys(recorded, tmp_path, monkeypatch):
    """Two architectures: the second cannot take the last prompt."""
    _, config = recorded
    one, two = Path("one"), Path("two")
    cast = [Contestant("a", one, "A"), Contestant("b", one, "B", tmp_path), Contestant("c", two, "C")]
    sampled = []

    async def heldout(config):
        return {p.id: p for p in (PROMPTS[:3] if config.model.path == "one" else PROMPTS[:2])}

    async def sample(config, missing, logs, faults, progress):
        for player, prompts in missing.items():
            for p in prompts:
                sampled.append((player.name, p.id))
                yield player, replace(candidate(p.id), id=f"{player.identity}/{p.id}", player=player.name)

    monkeypatch.setattr(arena, "_heldout", heldout)
    monkeypatch.setattr(arena, "_sample", sample)

    def answered(players):
        sampled.clear()
        return asyncio.run(arena._answers(config, players, tmp_path, Faults(config.recovery), Silent()))

    prompts, found = answered(cast[:2])
    assert len(sampled) == 6
    prompts, again = answered(cast)
    assert set(sampled) == {("c", "p00"), ("c", "p01")}  # one player more costs what it costs
    assert {p.id for p in prompts} == set(again["a"]) == set(again["b"]) == {"p00", "p01"}
    assert again["a"] == {i: a for i, a in found["a"].items() if i != "p02"}
    assert {a.player for a in again["c"].values()} == {"c"}
    warmer = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"temperature": 0.9})})
    sampled.clear()
    asyncio.run(arena._answers(warmer, cast[:1], tmp_path, Faults(config.recovery), Silent()))
    assert len(sampled) == 3  # other answers


def test_an_arena_from_answers_to_its_table(recorded, tmp_path, monkeypatch):
    _, config = recorded
    cast = [Contestant(name, tmp_path / "base", name) for name in ("initial", "b\x1b[31m", "c")]
    strength = dict(zip([c.name for c in cast], (0.0, 3.0, 6.0), strict=True))
    judges = []

    async def given(*_):
        return PROMPTS, answers(list(strength), PROMPTS)

    def start(*_):
        judges.append(Planted(strength))
        return judges[-1]

    for name, stub in (("_answers", given), ("start_arbiter", start)):
        monkeypatch.setattr(arena, name, stub)
    for name in ("pipelines.cluster.join_cluster", "pipelines.doctor.refuse_unfit", "actors.quiet.quiet_driver"):
        monkeypatch.setattr(name, lambda *_, **__: None)

    def held():
        return asyncio.run(arena.arena(config, cast, tmp_path / "arena", Silent()))

    first, second = held(), held()
    assert first.asked == len(judges[0].asked) == first.judged < first.everybody == 120
    assert (second.asked, judges[1].asked) == (0, [])  # nothing is bought twice
    assert second.ratings == first.ratings
    assert json.loads((tmp_path / "arena" / "report.json").read_text())["players"] == {n: n for n in strength}
    console = Console(file=io.StringIO(), width=110)
    show_arena(first, console)
    shown = console.file.getvalue()
    assert "initial is at 1000" in shown
    assert f"{first.judged} matches were judged, everybody against everybody takes 120" in shown
    assert "\x1b" not in shown


# -- players ---------------------------------------------------------------------------------------------------------


def model(path, weights="w"):
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(weights.encode() * 100)
    return path


@pytest.fixture
def recorded(tmp_path):
    """(run directory, configuration) of a run that has ended after 4 steps and keeps two earlier versions."""
    base = model(tmp_path / "base", "a")
    config = load_config(
        RunConfig, QUICKSTART, [f"model.path={base}", "judge.max_failure_rate=0.25", "evaluation.temperature=0.5"]
    )
    directory = tmp_path / "r"
    directory.mkdir()
    write_record(directory, RunRecord("h", scientific(config), "", 1, 4, finished=4))
    model(directory / "model", "z")
    for step in (2, 4):
        WeightWriter(directory / "players" / f"0.{step}", Version(0, step)).finish()
    WeightWriter(directory / "players" / "0.3", Version(0, 3))  # was being written
    return directory, config


def test_who_plays_of_a_run(recorded, tmp_path):
    directory, _ = recorded
    found = contestants([directory], tmp_path / "scratch")
    assert [p.name for p in found] == ["initial", "version 0.2", "final"]  # version 0.4 is the final model
    assert found[0].model == found[1].model
    assert found[1].weights == directory / "players" / "0.2"
    assert len({p.identity for p in found}) == 3
    other = model(tmp_path / "other" / "base", "c")
    more = contestants([directory, other, model(tmp_path / "copy", "z")], tmp_path / "scratch")
    assert [p.name for p in more] == ["initial", "version 0.2", "final", "base"]  # the copy is the final model
    twin = model(tmp_path / "more" / "base", "d")
    assert [p.name for p in contestants([other, twin], tmp_path)] == ["other/base", "more/base"]


def test_an_arena_needs_two(recorded, tmp_path):
    alone = model(tmp_path / "alone")
    with pytest.raises(ConfigError, match="needs two players; found alone: name another"):
        contestants([alone], tmp_path)
    with pytest.raises(ConfigError, match="neither a run"):
        contestants([alone, tmp_path], tmp_path)


def test_a_runs_configuration_is_read_back_as_it_was(recorded):
    directory, config = recorded
    found = arena_config([directory], None, [], directory)
    ours, theirs = flatten(config), flatten(found)
    sections = ("model.", "prompts.", "sampling.", "judge.", "batching.", "run.seed", "evaluation.temperature")
    assert {k: v for k, v in theirs.items() if k.startswith(sections)} == {
        k: v for k, v in ours.items() if k.startswith(sections)
    }
    assert arena_config([directory], None, ["sampling.max_tokens=7"], directory).sampling.max_tokens == 7


def test_a_file_that_moved_has_to_be_given(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    (here / "g.txt").write_text("be kind")
    judge = "judge={kind: llm, model: m, guidelines: g.txt}"
    config = load_config(RunConfig, QUICKSTART, [judge.replace("g.txt", str(here / "g.txt"))])
    record = RunRecord("h", scientific(config), "", 1, 0)
    assert recorded_sections(record, ("judge",), [], [here])["judge"]["guidelines"] == str(here / "g.txt")
    (here / "g.txt").write_text("be rude")
    with pytest.raises(ConfigError, match=r"judge\.guidelines: the run used g\.txt .*judge\.guidelines=PATH"):
        recorded_sections(record, ("judge",), [], [here])
    left = recorded_sections(record, ("judge",), ["judge.guidelines=other.txt"], [here])["judge"]
    assert "guidelines" not in left
    assert left["kind"] == "llm"
    assert recorded_sections(record, ("judge",), ["judge={kind: rule, rule: 'a:b'}"], [here]) == {}


def test_judges_of_judges_are_read_back(tmp_path):
    rule = "{kind: rule, rule: 'a:b'}"
    panel = f"{{kind: panel, members: [{{judge: {rule}, weight: 2}}, {{judge: {{kind: llm, model: /m}}}}]}}"
    judge = f"judge={{kind: escalation, first: {panel}, then: {rule}, on_flip: false, audit: 0.25}}"
    config = load_config(RunConfig, QUICKSTART, [judge, "evaluation.judge=null"])
    raw = recorded_sections(RunRecord("h", scientific(config), "", 1, 0), ("judge",), [], [])
    assert load_config(RunConfig, QUICKSTART, [f"judge={json.dumps(raw['judge'])}"]).judge == config.judge
