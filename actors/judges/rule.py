"""Rule judge: a Python callable by import path rates every response of a prompt."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.faults import Faults
from actors.pool import ActorPool, Crew, actor_options, remote_call
from actors.quiet import redirect_output
from configs.judges import RuleJudge
from configs.schema import Deadlines, Group
from preference.types import (
    CandidateGroup,
    JudgeFailure,
    JudgeInfo,
    Outcome,
    Prompt,
    Rating,
    content_id,
)

Rule = Callable[[Prompt, Sequence[str]], Sequence[float]]


def load_rule(path: str) -> Rule:
    """Import ``package.module:callable``; raises ImportError naming the path where it cannot be had."""
    module_name, _, name = path.partition(":")
    try:
        rule: Rule = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ImportError(f"judge rule {path!r} cannot be imported: {error}") from error
    return rule


def apply_rule(rule: Rule, info: JudgeInfo, group: CandidateGroup) -> tuple[Rating | JudgeFailure, ...]:
    """Ratings of a group. A rule that raises or returns nonsense yields one failure, never a score."""
    ids = tuple(c.id for c in group.candidates)
    try:
        scores = [float(s) for s in rule(group.prompt, [c.text for c in group.candidates])]
        if len(scores) != len(ids):
            raise ValueError(f"returned {len(scores)} scores for {len(ids)} responses")
        if not all(math.isfinite(s) for s in scores):
            raise ValueError(f"returned a score that is not finite: {scores}")
    except Exception as error:  # whatever a user's rule raises is data about the judge, not a crash of the run
        return (JudgeFailure(ids, Outcome.FAILED, f"{type(error).__name__}: {error}", info),)
    return tuple(Rating(i, s, info) for i, s in zip(ids, scores, strict=True))


class RuleJudgeActor:
    def __init__(self, config: RuleJudge, log_file: str) -> None:
        redirect_output(Path(log_file))
        self._rule = load_rule(config.rule)
        self._info = JudgeInfo(config.rule, content_id("rule", config.rule))

    def rate(self, groups: Sequence[CandidateGroup]) -> list[Rating | JudgeFailure]:
        return [r for g in groups for r in apply_rule(self._rule, self._info, g)]

    def ready(self) -> bool:
        return True


class RuleJudgePool:
    """A ``Rater``."""

    def __init__(
        self, judge: RuleJudge, group: Group, deadlines: Deadlines, log_dir: Path, name: str, faults: Faults
    ) -> None:
        remote: Any = ray.remote(RuleJudgeActor)
        self.name = judge.rule.partition(":")[2]

        def start(index: int) -> Any:
            return remote.options(**actor_options(group)).remote(judge, str(log_dir / f"{name}-{index}.log"))

        async def ready(index: int, actor: Any) -> None:
            who = f"judge {self.name} actor {index} (starting)"
            await remote_call(actor.ready.remote(), who=who, seconds=deadlines.start_s)

        self._crew: Crew[Any] = Crew(f"judge {self.name}", group.actors, start, ready, deadlines, faults)
        self._pool = ActorPool(self._crew)

    async def ready(self) -> None:
        await self._crew.ready()

    async def rate(self, groups: Sequence[CandidateGroup]) -> list[Rating | JudgeFailure]:
        rated: list[Rating | JudgeFailure] = await self._pool.call("rate", lambda a: a.rate.remote(groups))
        return rated

    def close(self) -> None:
        self._pool.kill()
