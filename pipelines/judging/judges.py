"""The judges of a run: started as its configuration says, each behind one stage."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from actors.faults import Faults
from actors.judges.combined import Comparing, Escalation, Panel, People, Rated
from actors.judges.errors import JudgeError
from actors.judges.http import HttpJudgePool, definitions
from actors.judges.implicit import ImplicitPool
from actors.judges.llm import LlmJudgePool
from actors.judges.policy import Engines, PolicyJudge
from actors.judges.protocol import Arbiter, Rater
from actors.judges.reward_model import RewardModelPool
from actors.judges.rule import RuleJudgePool
from configs.judges import (
    EscalationJudge,
    HttpJudge,
    HumanJudge,
    ImplicitJudge,
    Judge,
    LlmJudge,
    PanelJudge,
    RewardModelJudge,
    RuleJudge,
    is_independent,
    singles,
)
from configs.runs import RunConfig
from configs.schema import Deadlines, Group
from pipelines.annotate.judge import HumanPool
from pipelines.data.encode import model_encoder
from pipelines.data.report import Unfit
from pipelines.data.rules import DataRules
from pipelines.data.runs import journal
from pipelines.judging.remembered import Memory, costs, remembering
from pipelines.judging.stage import JudgeStage
from pipelines.pairing import pairing_rules
from pipelines.progress import Progress
from preference.panel import EscalationRules, PanelRules
from preference.types import Prompt

HELDOUT = "heldout"
"""Journals of a run's ledger that hold what its judges said of held-out answers begin so."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What judges need of their run."""

    group: Group
    deadlines: Deadlines
    run_dir: Path
    log_dir: Path
    initial_model: str
    """Directory of the model that training began with."""
    seed: int
    announce: Callable[[str], None]
    """Tells a person something that must not end up in a log."""
    faults: Faults
    costs: Mapping[str, float] = field(default_factory=dict)
    """What judges have cost in earlier attempts, by their definition."""
    paid: Sequence[HttpJudge] = ()
    """The judges that may have cost it."""
    engines: Engines | None = None
    """Who serves the policy; None outside of a run."""
    max_model_len: int = 0
    """Context length of those engines."""


def start_rater(judge: Judge, s: Surroundings, name: str) -> Rater:
    """A judge that ``is_pointwise``, by itself."""
    match judge:
        case RuleJudge():
            return RuleJudgePool(judge, s.group, s.deadlines, s.log_dir, name, s.faults)
        case RewardModelJudge():
            return RewardModelPool(judge, s.group, s.deadlines, s.log_dir, name, s.faults)
        case ImplicitJudge():
            return ImplicitPool(judge, s.group, s.deadlines, s.log_dir, name, s.faults)
        case LlmJudge() | HttpJudge():
            return _start_prompted(judge, s, name)
    raise ValueError(f"judge.kind = {judge.kind} does not rate single responses")


def _start_prompted(
    judge: LlmJudge | HttpJudge, s: Surroundings, name: str
) -> LlmJudgePool | HttpJudgePool | PolicyJudge:
    if isinstance(judge, HttpJudge):
        return HttpJudgePool(judge, s.group, s.deadlines, s.log_dir, name, spent_on(judge, s.paid, s.costs))
    if judge.model != "policy":
        return LlmJudgePool(judge, s.group, s.deadlines, s.log_dir, name, s.initial_model, s.faults)
    if s.engines is None:
        raise JudgeError("judge.model = policy: there is no policy outside of a run; name a model directory")
    return PolicyJudge(judge, s.engines, s.initial_model, s.max_model_len, name)


def start_arbiter(judge: Judge, s: Surroundings, name: str, scale: float = 1.0) -> Arbiter:
    """Any judge, asked to compare; ``scale`` turns differences of ratings into probabilities."""
    match judge:
        case PanelJudge():
            members = [start_arbiter(m.judge, s, f"{name}-{i}", m.scale) for i, m in enumerate(judge.members)]
            weights = tuple(m.weight for m in judge.members)
            return Panel(members, PanelRules(weights, judge.tie_band, judge.min_votes))
        case EscalationJudge():
            first = start_arbiter(judge.first, s, f"{name}-first", judge.scale)
            then = start_arbiter(judge.then, s, f"{name}-then", judge.scale)
            rules = EscalationRules(judge.below, judge.on_flip, judge.on_failure, judge.audit, s.seed)
            return Escalation(first, then, rules)
        case HumanJudge():
            return People(HumanPool(judge, s.run_dir, s.deadlines, s.log_dir, name, s.announce))
        case LlmJudge() | HttpJudge() if judge.mode == "pairwise":
            return Comparing(_start_prompted(judge, s, name))
    return Rated(start_rater(judge, s, name), scale)


def start_judge(judge: Judge, s: Surroundings, name: str) -> Rater | Arbiter:
    """A judge that rates where it can do so by itself, else one that compares."""
    labels = isinstance(judge, HumanJudge) and judge.mode == "labels"
    return start_rater(judge, s, name) if is_pointwise(judge) and not labels else start_arbiter(judge, s, name)


def is_pointwise(judge: Judge) -> bool:
    """Whether the judge, alone, rates responses one by one."""
    match judge:
        case LlmJudge() | HttpJudge():
            return judge.mode == "pointwise"
        case HumanJudge():
            return judge.mode == "labels"
        case RuleJudge() | RewardModelJudge() | ImplicitJudge():
            return True
    return False


def start_judges(
    config: RunConfig,
    run_dir: Path,
    log_dir: Path,
    progress: Progress,
    faults: Faults,
    engines: Engines | None = None,
) -> list[JudgeStage]:
    """The judge that pairs come from and, where there is one, the independent judge of held-out answers.

    ``engines`` serve the policy, which may be a judge, too. What judges have cost in earlier attempts of the run counts
    against their budgets, and what they have said of held-out answers is not asked again.
    """

    def encode(prompt: Prompt, text: str) -> tuple[int, ...]:
        try:
            return model_encoder(config.model.path, DataRules()).response_ids(prompt, text)
        except Unfit as error:
            raise ValueError(str(error)) from None

    def stage(judge: Judge, name: str) -> JudgeStage:
        pool = start_judge(judge, around, name)
        labels = isinstance(judge, HumanJudge) and judge.mode == "labels"
        people = _people(pool) if isinstance(pool, Arbiter) else None
        heldout = remembering(pool, Memory(heldout_journal(run_dir, name))) if is_independent(judge) else None
        budget = config.batching.micro_batch_tokens
        return JudgeStage(pool, people, rules, encode, budget, progress.message, labels=labels, heldout=heldout)

    rules = pairing_rules(config.pairing, config.sampling, config.run.seed)
    wanted = {"judge": config.judge}
    if config.evaluation.judge is not None:
        wanted["second-judge"] = config.evaluation.judge
    around = Surroundings(
        config.resources.judge, config.deadlines, run_dir, log_dir, config.model.path, config.run.seed,
        partial(_privately, progress, run_dir), faults, costs_of(run_dir),
        [j for judge in wanted.values() for _, j in singles("", judge) if isinstance(j, HttpJudge)],
        engines, config.sampling.max_model_len,
    )  # fmt: skip
    return [stage(judge, name) for name, judge in wanted.items()]


def heldout_judges(config: RunConfig, started: Sequence[JudgeStage]) -> Sequence[JudgeStage]:
    """Those of ``start_judges`` that may judge held-out answers: neither people nor the policy itself."""
    return started if is_independent(config.judge) else started[1:]


def heldout_journal(run_dir: Path, name: str) -> Path:
    """What the judge of that name has said of held-out answers."""
    return run_dir / "ledger" / f"{HELDOUT}-{name}.jsonl"


def outside_a_run(config: RunConfig) -> RunConfig:
    """``config`` with only the judges that may judge held-out answers: neither people nor a policy is at hand."""
    if is_independent(config.judge):
        return config
    evaluation = config.evaluation.model_copy(update={"judge": None})
    return config.model_copy(update={"judge": config.evaluation.judge, "evaluation": evaluation})


def costs_of(run_dir: Path) -> Counter[str]:
    """What the judgements in a run's journals have cost, by the definition of the judge."""
    ledger = run_dir / "ledger"
    files = [ledger / "judgements.jsonl", *ledger.glob(f"{HELDOUT}-*.jsonl")]
    return costs(record for file in files if file.exists() for record in journal(file))


def spent_on(judge: HttpJudge, paid: Sequence[HttpJudge], costs: Mapping[str, float]) -> float:
    """What ``judge``, one of ``paid``, has cost, or may have.

    A panel's verdicts say what they cost, but not which member it was: that counts for everybody who is paid, so that
    no budget is exceeded.
    """
    own = set(definitions(judge))
    others = {d for j in paid for d in definitions(j)} - own
    return sum(cost for definition, cost in costs.items() if definition not in others)


def _people(arbiter: Arbiter) -> HumanPool | None:
    if isinstance(arbiter, Escalation):
        return _people(arbiter.then)
    pool = arbiter.pool if isinstance(arbiter, People) else None
    return pool if isinstance(pool, HumanPool) else None


def _privately(progress: Progress, run_dir: Path, links: str) -> None:
    """Links open the page to whoever has them: they go to the terminal, or to a file that only its owner can read."""
    if sys.stdout.isatty():
        progress.message(links)
        return
    file = run_dir / "links.txt"
    file.touch(mode=0o600)
    file.write_text(links + "\n")
    progress.message(
        f"people judge in this run: their links are in {file} (`rondo annotate --link NAME` makes new ones)"
    )
