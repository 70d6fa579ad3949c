"""The judging stage: whatever judge the configuration names, seen by the loop as one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from actors.judges.protocol import Rater
from actors.judges.rule import RuleJudgePool
from configs.judges import Judge, RuleJudge
from configs.runs import RunConfig
from preference.types import CandidateGroup, JudgedGroup


def start_judge(judge: Judge, config: RunConfig, log_dir: Path, name: str) -> Rater:
    """The pool of one judge; its actors begin to start."""
    if isinstance(judge, RuleJudge):
        return RuleJudgePool(judge, config.resources.judge, config.deadlines, log_dir, name)
    raise NotImplementedError(f"judge.kind = {judge.kind}")


class JudgeStage:
    """Asks a judge about groups of candidates."""

    def __init__(self, judge: Judge, config: RunConfig, log_dir: Path, name: str) -> None:
        self._judge = start_judge(judge, config, log_dir, name)
        self.name = self._judge.name

    async def ready(self) -> None:
        await self._judge.ready()

    async def judge(self, groups: Sequence[CandidateGroup]) -> list[JudgedGroup]:
        return list(await asyncio.gather(*(self._judge_one(g) for g in groups)))

    async def _judge_one(self, group: CandidateGroup) -> JudgedGroup:
        return JudgedGroup(group, tuple(await self._judge.rate([group])))

    def close(self) -> None:
        self._judge.close()
