"""Opponents with hand-written engines: who stands in a group, with which weights, and what is said about them."""

import asyncio
import shutil
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.requests import SamplePlan
from actors.weights import WeightsError
from pipelines.look import plots
from pipelines.look.dictionary import is_known
from pipelines.play.guests import Unusable
from pipelines.play.merging import merged
from pipelines.play.opponents import Guest, Opponents, in_turn
from pipelines.wording import step_line
from preference.reports import Faced, OpponentMetrics
from preference.types import Version, Written
from tests.unit.season import PROMPTS, Engine, Notes, Season, config, steps_of
from tests.unit.test_plots import FULL


def test_who_plays_what(tmp_path):
    season = Season(tmp_path, config())
    asyncio.run(season.run(0, 5, {}, {1, 2, 4, 5}))
    steps = steps_of(season.played)
    # Step 3 found no pair: step 4 is sampled with version 2, and the one before that is 1 no longer.
    assert [steps[s, "p0", "previous"] for s in range(1, 6)] == [0, 0, 1, 2, 2]
    assert {steps[s, p.id, "reference"] for s in range(1, 6) for p in PROMPTS} == {0}
    members = [{steps[s, p.id, "league"] for p in PROMPTS} for s in range(1, 6)]
    assert members[:3] == [{0}, {0}, {0}]
    assert all(m <= {0, 2} for m in members[3:])
    assert [v.step for v in season.versions.versions] == [2, 4, 5]


def test_groups_hold_everybody_in_order(tmp_path):
    season = Season(tmp_path, config())

    async def first():
        plan = SamplePlan(1, "train", 2, 8, 1.0, 1.0, 0)
        return [g async for g in season.opponents.sample(PROMPTS, plan)]

    for group in asyncio.run(first()):
        assert [c.player for c in group.candidates] == ["policy", "policy", "previous", "previous", "league",
                                                        "reference", "data"]  # fmt: skip
        assert [c.index for c in group.sampled] == [0, 1, 2, 3, 4, 5]
    assert season.pool.loaded == []  # all of them are the initial policy, which the engines have


def test_metrics_say_who_won_and_what_it_took(tmp_path):
    season = Season(tmp_path, config())

    async def go():
        journal = {}
        await season.run(0, 3, journal, {1, 2, 3})
        return season.opponents.judged(3, journal[3])

    found = asyncio.run(go())
    names = [f.player for f in found.faced]
    assert names[:3] == ["data", "league", "league/0.0"]
    assert {"previous", "reference"} <= set(names)
    games = {f.player: f.games for f in found.faced}
    assert (games["previous"], games["reference"], games["data"], games["league"]) == (16, 8, 8, 8)
    assert found.loads == len(season.loads[3])
    assert found.unusable == 0


def test_missing_weights_are_named(tmp_path):
    season = Season(tmp_path, config([{"player": "previous"}]))
    asyncio.run(season.run(0, 3, {}, {1, 2, 3}))
    shutil.rmtree(tmp_path / "players" / "0.2")
    with pytest.raises(WeightsError, match=r"players/0.2: the weights of version 0.2 are to play and are not there"):
        asyncio.run(season.prepare(4))


@given(st.lists(st.integers(0, 5), min_size=1), st.integers(0, 5))
def test_what_is_served_goes_first(asked, served):
    order = in_turn([Version(0, s) for s in asked], Version(0, served))
    assert Counter(order) == Counter({Version(0, s) for s in asked})
    assert (served in asked) == (order[0] == Version(0, served))


def test_beside_the_reference_the_previous_version_costs_three_loads_in_two_steps(tmp_path):
    season = Season(tmp_path, config([{"player": "previous"}, {"player": "reference"}]))
    asyncio.run(season.run(0, 9, {}, set(range(1, 10))))
    assert [len(season.loads[s]) for s in range(1, 10)] == [0, 0, 1, 2, 1, 2, 1, 2, 1]


def test_another_models_unusable_responses_are_counted_and_explained_once(tmp_path):
    class Picky:
        """Cannot read p1, cannot be read at p2, and is cut off at p3."""

        def prompt(self, p):
            if p.id == "p1":
                raise Unusable("too long for it")
            return replace(p, token_ids=(77,))

        def response(self, p, c):
            assert p.token_ids == PROMPTS[0].token_ids  # the policy's
            if p.id == "p2":
                raise Unusable("not in the policy's tokens")
            return Written(c.id, p.id, (5, 6), c.text, c.player, p.id != "p3")

    cfg = config([{"player": "model", "name": "guest", "path": "/g", "candidates": 2}])
    notes, engine = Notes(), Engine()
    opponents = Opponents(cfg, Engine(), None, {"guest": Guest(engine, Picky())}, {}, notes)

    async def go():
        plan = SamplePlan(1, "train", 2, 8, 1.0, 1.0, 0)
        return {g.prompt.id: g async for g in opponents.sample(PROMPTS, plan)}

    groups = asyncio.run(go())
    assert [len(groups[p.id].candidates) for p in PROMPTS] == [4, 2, 2, 4]
    assert {c.player for c in groups["p0"].candidates[2:]} == {"guest"}
    assert [c.finished for c in groups["p3"].candidates[2:]] == [False, False]
    assert opponents.judged(1, []).unusable == 2
    assert len(notes.messages) == 1
    assert "opponent guest: no response to prompt p1: too long for it" in notes.messages[0]
    assert asyncio.run(opponents.load("nowhere", Version(0, 1))) >= 0  # nobody asks for earlier weights


def test_what_one_stream_raises_ends_them_all():
    closed = []

    async def endless():
        try:
            while True:
                yield 1
                await asyncio.sleep(0)
        finally:
            closed.append("endless")

    async def broken():
        yield 2
        raise RuntimeError("an engine is gone")

    async def go():
        return [x async for x in merged([endless(), broken()])]

    with pytest.raises(RuntimeError, match="an engine is gone"):
        asyncio.run(go())
    assert closed == ["endless"]


def test_the_figures_have_names_that_are_known():
    faced = (Faced("league", 2, 0.5), Faced("league/0.4", 2, 0.5), Faced("guest", 0, float("nan")))
    sample = replace(FULL.sample, opponents=OpponentMetrics(faced, 3, 1))
    values = plots.step_metrics(replace(FULL, sample=sample))
    found = {name: value for name, value in values.items() if name.startswith("opponents/")}
    assert found == {
        "opponents/league/win_rate": 0.5, "opponents/league/games": 2, "opponents/league/0.4/win_rate": 0.5,
        "opponents/league/0.4/games": 2, "opponents/guest/games": 0, "opponents/loads": 3, "opponents/unusable": 1,
    }  # fmt: skip
    assert all(is_known(name) for name in found)
    assert "wins against league 0.50  " in step_line(replace(FULL, sample=sample), 9)
    assert "wins" not in step_line(FULL, 9)
