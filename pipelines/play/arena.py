"""``rondo arena``: versions of a run, or any models, against each other on held-out prompts, under one judge.

    players ──one answer a prompt──> answers.jsonl ──meetings, round by round──> judge ──games──> ratings
                                                           ^──whose order is open <─────────────────┘

Every player answers every prompt once; who meets whom on which prompts is ``preference.schedule``'s to say. Answers and
judgements lie in a directory and are neither sampled nor bought again: an arena that was interrupted goes on, and one
with a further player costs what that player costs.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actors.faults import Fault, Faults
from actors.judges.errors import JudgeError
from actors.requests import SamplePlan
from actors.weights import WeightFiles
from configs.judges import HttpJudge, singles
from configs.runs import RunConfig
from pipelines.judging.judges import Surroundings, is_pointwise, outside_a_run, start_arbiter
from pipelines.judging.remembered import Memory, RememberingArbiter, judge_identity
from pipelines.ledger.journal import Journal
from pipelines.ledger.judged import response_type
from pipelines.look.output import write_json
from pipelines.play.contestants import INITIAL, Contestant
from pipelines.play.matches import Answers, Played, games_of, play
from pipelines.progress import Progress
from pipelines.prompts import heldout_ids, load_prompts
from preference.bradley_terry import Rating, ratings_table
from preference.schedule import Two
from preference.types import Candidate, Prompt, content_id


@dataclass(frozen=True, slots=True)
class Meeting:
    """Two players over all prompts that they met on; the judge's P(better) is the score, a tie 1/2."""

    first: str
    second: str
    prompts: int
    score: float
    """Sum of the first's scores over ``games``."""
    games: int
    identical: int
    """Of these, prompts with the same answer from both: a tie that nobody judged."""
    failed: int


@dataclass(frozen=True, slots=True)
class ArenaReport:
    judge: str
    prompts: int
    players: dict[str, str]
    """Hash of everybody's weights and tokenizer by name."""
    ratings: tuple[Rating, ...]
    """Elo points: 400 are odds of ten to one; the anchor, or else the mean, is at 1000."""
    anchor: str
    """Empty: none."""
    meetings: tuple[Meeting, ...]
    judged: int
    """Matches that the judge decided or failed at, each in both orders where it has orders."""
    everybody: int
    """Matches that everybody against everybody would have taken."""
    asked: int
    """Those of ``judged`` that it was asked now; the others were known from before."""
    failed: int
    cost: float
    directory: str
    seconds: float


async def arena(config: RunConfig, players: Sequence[Contestant], out: Path, progress: Progress) -> ArenaReport:
    """Play, and write ``report.json`` to ``out``. ``config``: held-out prompts, sampling, judge, resources.

    Raises what samplers and judges raise.
    """
    from actors.quiet import quiet_driver
    from pipelines.cluster import join_cluster
    from pipelines.doctor import refuse_unfit

    started = time.monotonic()
    for model in dict.fromkeys(p.model for p in players):
        refuse_unfit(_with_model(config, model), training=False)
    logs = out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    quiet_driver(logs / "driver.log")
    join_cluster(config, training=False)
    quiet_driver(logs / "driver.log")

    def lost(fault: Fault) -> None:
        progress.warning(f"{fault.cause}; replaced")

    faults = Faults(config.recovery, lost)
    prompts, answers = await _answers(config, players, out, faults, progress)
    judge = outside_a_run(config).judge
    memory = Memory(out / f"judgements-{judge_identity(judge, config.model.path)}.jsonl")
    around = Surroundings(
        config.resources.judge, config.deadlines, out, logs, config.model.path, config.run.seed, progress.message,
        faults, memory.costs, [j for _, j in singles("judge", judge) if isinstance(j, HttpJudge)],
    )  # fmt: skip
    arbiter = RememberingArbiter(start_arbiter(judge, around, "judge"), memory)
    try:
        await arbiter.ready()
        played = await play(arbiter, prompts, answers, progress, certain=not is_pointwise(judge))
    finally:
        arbiter.close()
    report = report_of(arbiter.name, len(prompts), players, played, memory.asked, out, time.monotonic() - started)
    write_json(out / "report.json", report)
    return report


# -- answers ---------------------------------------------------------------------------------------------------------


async def _answers(
    config: RunConfig, players: Sequence[Contestant], out: Path, faults: Faults, progress: Progress
) -> tuple[list[Prompt], dict[str, Answers]]:
    """The held-out prompts, and every player's answer to each of them."""
    journal = Journal(out / "answers.jsonl")
    known = {r["key"]: response_type.validate_python(r["response"]) for r in journal}
    found: dict[str, Answers] = {}
    models = dict.fromkeys(p.model for p in players)  # players of one architecture share its engines
    try:
        tokenised = {model: await _heldout(_with_model(config, model)) for model in models}
        common = set.intersection(*map(set, tokenised.values()))  # none that is too long for one of them
        ids = heldout_ids(common, config.evaluation.prompts, config.run.seed)
        for model in models:
            own, prompts = _with_model(config, model), [tokenised[model][i] for i in ids]
            group = [p for p in players if p.model == model]
            keys = {(p.name, q.id): _key(own, p, q) for p in group for q in prompts}
            missing = {p: [q for q in prompts if keys[p.name, q.id] not in known] for p in group}
            async for player, answer in _sample(own, missing, out / "logs", faults, progress):
                key = keys[player.name, answer.prompt_id]
                known[key] = answer
                journal.append({"key": key, "response": response_type.dump_python(answer, mode="json")})
                journal.flush()
            for player in group:
                answers = {q.id: known[keys[player.name, q.id]] for q in prompts}
                found[player.name] = {
                    i: replace(a, player=player.name) for i, a in answers.items() if isinstance(a, Candidate)
                }
    finally:
        journal.close()
    return prompts, found


def _with_model(config: RunConfig, model: Path) -> RunConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"path": str(model)})})


async def _heldout(config: RunConfig) -> Mapping[str, Prompt]:
    """The held-out prompts of a configuration by id, tokenised for its model."""
    cpus = config.resources.data_cpus
    [loaded] = await asyncio.to_thread(load_prompts, [config.prompts.heldout], config.model, config.prompts, cpus)
    return loaded.prompts


def _key(config: RunConfig, player: Contestant, prompt: Prompt) -> str:
    """What an answer follows from."""
    plan = _plan(config, player.identity)
    return content_id(prompt.token_ids, plan.request(prompt, 0).id, plan.max_tokens, plan.temperature, plan.top_p)


def _plan(config: RunConfig, player: str) -> SamplePlan:
    sampling, evaluation = config.sampling, config.evaluation
    return SamplePlan(
        0, f"arena {player}", 1, sampling.max_tokens, evaluation.temperature, sampling.top_p, config.run.seed
    )


async def _sample(
    config: RunConfig, missing: Mapping[Contestant, Sequence[Prompt]], logs: Path, faults: Faults, progress: Progress
) -> AsyncIterator[tuple[Contestant, Candidate]]:
    """The answers that are missing, of players of one architecture, one player after another."""
    from actors.sampler import SamplerPool

    if not any(missing.values()):
        return
    pool = SamplerPool(config, logs, faults)
    try:
        await pool.ready()
        # Who plays with the model's own weights comes first: loading others over them is not undone.
        for player in sorted(missing, key=lambda p: p.weights is not None):
            if player.weights is not None and missing[player]:
                await pool.load(str(player.weights), WeightFiles.open(player.weights).version)
            done = 0
            async for group in pool.sample(missing[player], _plan(config, player.identity)):
                done += 1
                progress.stage(0, f"answers of {player.name}", done, len(missing[player]), 0)
                [answer] = group.sampled
                yield player, answer
    finally:
        pool.close()


# -- report ----------------------------------------------------------------------------------------------------------


def report_of(
    judge: str,
    prompts: int,
    players: Sequence[Contestant],
    played: Sequence[Played],
    asked: int,
    out: Path,
    seconds: float,
) -> ArenaReport:
    games = games_of(played)
    if not games:
        raise JudgeError(f"judge {judge} failed at all {len(played)} matches: {out} has its log")
    anchor = INITIAL if any(INITIAL in (g.first, g.second) for g in games) else ""
    met = {pair: [p for p in played if p.players == pair] for pair in dict.fromkeys(p.players for p in played)}
    return ArenaReport(
        judge=judge,
        prompts=prompts,
        players={p.name: p.identity for p in players},
        ratings=ratings_table(games, anchor=anchor or None),
        anchor=anchor,
        meetings=tuple(_meeting(pair, found) for pair, found in met.items()),
        judged=sum(not p.identical for p in played),
        everybody=prompts * len(players) * (len(players) - 1) // 2,
        asked=asked,
        failed=sum(p.game is None for p in played),
        cost=math.fsum(p.cost for p in played),
        directory=str(out),
        seconds=seconds,
    )


def _meeting(pair: Two, played: Sequence[Played]) -> Meeting:
    games = games_of(played)
    return Meeting(
        *pair,
        prompts=len(played),
        score=math.fsum(g.score for g in games),
        games=len(games),
        identical=sum(p.identical for p in played),
        failed=len(played) - len(games),
    )
