"""Opponents with hand-written engines: who plays with which weights, what is loaded, what a resumed run repeats."""

import asyncio
import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.requests import SamplePlan
from actors.weights import WeightsError
from configs.loading import validate
from configs.runs import RunConfig
from pipelines.guests import Unusable
from pipelines.merging import merged
from pipelines.opponents import Guest, Opponents, Past, in_turn
from pipelines.versions import Versions
from preference.types import (
    CandidateGroup,
    JudgedGroup,
    Rating,
    Version,
    Written,
    content_id,
)
from tests.factories import INITIAL, JUDGE, candidate, prompt

PROMPTS = [prompt(f"p{i}") for i in range(4)]
FEW = PROMPTS[:2]
ALL = [
    {"player": "previous", "candidates": 2},
    {"player": "league", "size": 2, "every": 2},
    {"player": "reference"},
    {"player": "data"},
]


def config(opponents=ALL, staleness=0, **sections):
    raw = {
        "run": {"name": "t", "root": "/tmp", "max_staleness": staleness},
        "model": {"path": "/m"},
        "prompts": {"train": "/t", "heldout": "/h", "max_tokens": 64},
        "judge": {"kind": "rule", "rule": "a:b"},
        "sampling": {"candidates": 2},
        "pairing": {"strategy": "versus"},
        "opponents": opponents,
    }
    return validate(RunConfig, raw | sections)


class Engine:
    """In the place of a pool of samplers: late prompts first, and a log of what it was told to load."""

    def __init__(self, version=INITIAL):
        self.version, self.loaded, self.steps = version, [], []

    async def sample(self, prompts, plan):
        version = self.version
        for p in reversed(prompts):
            await asyncio.sleep(0)
            assert self.version == version, "weights changed under a request"
            made = (candidate(p.id, i, version=version) for i in range(plan.candidates))
            yield CandidateGroup(p, tuple(replace(c, id=plan.request(p, c.index).id) for c in made))

    async def load(self, directory, version):
        assert json.loads((directory / "manifest.json").read_text())["version"] == str(version)
        self.loaded.append(version)
        self.version = version
        return 0.0


class Pool(Engine):
    async def load(self, directory, version):
        from pathlib import Path

        return await super().load(Path(directory), version)


class Notes:
    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)


async def mark(published, target):
    """Keeps the name of a version alone: this is about which are kept."""
    target.mkdir(parents=True)
    manifest = {"version": target.name, "buckets": {}, "bytes": 0}
    (target / "manifest.json").write_text(json.dumps(manifest))


class Season:
    """The steps of one attempt as the loop takes them."""

    def __init__(self, directory, cfg, done=0, incarnation=0, prompts=PROMPTS):
        model = directory / "model"
        model.mkdir(exist_ok=True)
        (model / "model.safetensors").write_bytes(b"weights")
        self.versions = Versions(directory / "players", model, done, mark)
        self.pool, self.policy, self.notes = Pool(), Engine(Version(incarnation, done)), Notes()
        data = {p.id: Written(f"data {p.id}", p.id, (9, 8), "d") for p in PROMPTS}
        self.opponents = Opponents(cfg, self.policy, Past(self.pool, self.versions), {}, data, self.notes)
        self.cfg, self.incarnation, self.prompts = cfg, incarnation, prompts
        self.played: dict[tuple[int, str, str], Version] = {}
        self.loads: dict[int, list[Version]] = {}

    async def prepare(self, step):
        plan = SamplePlan(step, "train", 2, 8, 1.0, 1.0, self.cfg.run.seed)
        before, served = len(self.pool.loaded), self.pool.version
        groups = [g async for g in self.opponents.sample(self.prompts, plan)]
        self.loads[step] = self.pool.loaded[before:]
        assert served not in self.loads[step][:1]
        for group in groups:
            assert [c.player for c in group.candidates[:2]] == ["policy"] * 2
            ids = [c.id for c in group.candidates]
            assert len(set(ids)) == len(ids)
            for c in group.sampled[2:]:
                self.played[step, group.prompt.id, c.player] = c.version_max
        return [self.judge(g) for g in sorted(groups, key=lambda g: g.prompt.id)]

    def judge(self, group):
        """A score follows from who was asked what with which weights, in every life of the run alike."""

        def score(c):
            at = c.version_max.step if c.player not in ("policy", "data") else 0
            return int(content_id(c.id, at)[:4], 16) / 65536

        ratings = tuple(Rating(c.id, score(c), JUDGE) for c in group.candidates)
        return JudgedGroup(group, ratings)

    async def publish(self, step):
        version = Version(self.incarnation, step)
        self.policy.version = version
        await self.opponents.load("nowhere", version)

    async def run(self, done, steps, journal, publishes, until=None, late=False):
        """Steps after ``done``; ``until``: the process dies when it was trained. ``late``: samples no earlier."""
        ahead = self.cfg.run.max_staleness
        submitted = done
        for step in range(done + 1, steps + 1):
            while submitted < min(step + (0 if late else ahead), steps):
                submitted += 1
                if submitted not in journal:
                    journal[submitted] = await self.prepare(submitted)
                self.opponents.judged(submitted, journal[submitted])
            if step in publishes:
                await self.publish(step)
            if step == until:
                return

    async def resume(self, done, steps, journal, publishes, **how):
        for step, judged in journal.items():
            self.opponents.judged(step, judged)
        if done:
            await self.publish(done)
        await self.run(done, steps, journal, publishes, **how)


PLAYERS = st.fixed_dictionaries(
    {
        "lag": st.integers(1, 4),
        "size": st.integers(1, 3),
        "every": st.integers(1, 4),
        "draw": st.sampled_from(["uniform", "win_rate"]),
    }
).map(
    lambda d: [
        {"player": "previous", "lag": d["lag"]},
        {"player": "league", "size": d["size"], "every": d["every"], "draw": d["draw"]},
        {"player": "reference"},
    ]
)
STEPS = 9
PUBLISHES = st.sets(st.integers(1, STEPS), min_size=4)
REFERENCES = st.sampled_from([{}, {"refresh": "periodic", "every": 3}])


def steps_of(played):
    return {key: version.step for key, version in played.items()}


@settings(deadline=None, max_examples=25)
@given(PLAYERS, st.integers(0, 2), PUBLISHES, REFERENCES, st.data())
def test_a_resumed_run_repeats_who_played(tmp_path_factory, opponents, staleness, publishes, reference, data):
    cfg = config(opponents, staleness, reference=reference)
    whole = Season(tmp_path_factory.mktemp("whole"), cfg, prompts=FEW)
    asyncio.run(whole.run(0, STEPS, {}, publishes))
    late = Season(tmp_path_factory.mktemp("late"), cfg, prompts=FEW)
    asyncio.run(late.run(0, STEPS, {}, publishes, late=True))
    assert steps_of(late.played) == steps_of(whole.played)  # newer weights that are there already are nobody's

    directory, journal = tmp_path_factory.mktemp("stopped"), {}
    died = data.draw(st.integers(1, STEPS), label="died after")
    done = data.draw(st.integers(0, died), label="checkpoint")
    first = Season(directory, cfg, prompts=FEW)
    asyncio.run(first.run(0, STEPS, journal, publishes, until=died))
    again = Season(directory, cfg, done, incarnation=1, prompts=FEW)
    asyncio.run(again.resume(done, STEPS, journal, publishes))
    assert steps_of(first.played) | steps_of(again.played) == steps_of(whole.played)
    assert not set(first.played) & set(again.played)  # what was journaled is not sampled again
    for version in again.played.values():
        assert version.incarnation == int(version.step > done), "a dead version played"


@settings(deadline=None, max_examples=20)
@given(PLAYERS, st.integers(0, 2), PUBLISHES)
def test_a_step_loads_each_version_at_most_once_and_keeps_what_may_be_asked_for(
    tmp_path_factory, opponents, staleness, publishes
):
    season = Season(tmp_path_factory.mktemp("season"), config(opponents, staleness))
    asyncio.run(season.run(0, STEPS, {}, publishes))
    for step, loads in season.loads.items():
        wanted = {v for (s, _, _), v in season.played.items() if s == step}
        assert len(loads) == len(set(loads))
        assert set(loads) <= wanted
        assert len(loads) >= len(wanted) - 1
    lag, size = opponents[0]["lag"], opponents[1]["size"]
    every, newest = opponents[1]["every"], staleness + lag + 1
    assert len(season.versions.versions) <= newest + size + 1 + newest // every


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


def test_weights_that_went_back_within_an_attempt_never_play(tmp_path):
    cfg = config([{"player": "previous"}])
    season = Season(tmp_path, cfg)
    journal = {}
    asyncio.run(season.run(0, 6, journal, set(range(1, 7)), until=5))
    assert season.versions.versions[-1] == Version(0, 5)
    season.incarnation = 1  # the trainer was lost and goes on from step 3
    asyncio.run(season.publish(3))
    assert [v for v in season.versions.versions if v.step > 3] == []
    asyncio.run(season.run(3, 8, journal, set(range(4, 9))))
    assert {v.incarnation for (s, _, _), v in season.played.items() if v.step > 3 and s > 5} == {1}


def test_missing_weights_are_named(tmp_path):
    import shutil

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
