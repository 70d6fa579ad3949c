"""Runs of nothing but players: hand-written engines, and the steps of an attempt as the loop takes them."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

from actors.requests import SamplePlan
from configs.loading import validate
from configs.runs import RunConfig
from pipelines.play.opponents import Opponents, Past
from pipelines.play.versions import Versions
from preference.types import CandidateGroup, JudgedGroup, Rating, Version, Written, content_id
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


def steps_of(played):
    return {key: version.step for key, version in played.items()}
