"""The judge that a configuration names: its pools begin to start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from actors.judges.combined import Comparing, Escalation, Panel, People, Rated
from actors.judges.http import HttpJudgePool
from actors.judges.human import HumanPool
from actors.judges.implicit import ImplicitPool
from actors.judges.llm import LlmJudgePool
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
)
from configs.schema import Deadlines, Group
from preference.panel import EscalationRules, PanelRules


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
    spent: float
    """What judges that are paid for have cost in earlier attempts."""
    announce: Callable[[str], None]
    """Tells a person something that must not end up in a log."""


def start_rater(judge: Judge, s: Surroundings, name: str) -> Rater:
    """A judge that ``is_pointwise``, by itself."""
    match judge:
        case RuleJudge():
            return RuleJudgePool(judge, s.group, s.deadlines, s.log_dir, name)
        case RewardModelJudge():
            return RewardModelPool(judge, s.group, s.deadlines, s.log_dir, name)
        case ImplicitJudge():
            return ImplicitPool(judge, s.group, s.deadlines, s.log_dir, name)
        case LlmJudge() | HttpJudge():
            return _start_prompted(judge, s, name)
    raise ValueError(f"judge.kind = {judge.kind} does not rate single responses")


def _start_prompted(judge: LlmJudge | HttpJudge, s: Surroundings, name: str) -> LlmJudgePool | HttpJudgePool:
    if isinstance(judge, LlmJudge):
        return LlmJudgePool(judge, s.group, s.deadlines, s.log_dir, name, s.initial_model)
    return HttpJudgePool(judge, s.group, s.deadlines, s.log_dir, name, s.spent)


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
