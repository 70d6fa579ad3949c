"""Judging candidates that are there already: what ``rondo rejudge`` takes of a configuration."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from configs.judges import HumanJudge, Judge, asks_policy, singles
from configs.schema import Deadlines, Recovery, Resources
from configs.section import Section


class JudgeSection(Section):
    """A configuration of which only the judge is of interest."""

    judge: Judge


class Rejudge(JudgeSection):
    """A judge whose opinion is wanted now, and what it takes of the cluster."""

    resources: Resources = Resources()
    """``resources.judge``: its actors."""
    deadlines: Deadlines = Deadlines()
    recovery: Recovery = Recovery()

    @model_validator(mode="after")
    def _at_hand(self) -> Self:
        for section, judge in singles("judge", self.judge):
            if isinstance(judge, HumanJudge):
                raise ValueError(
                    f"{section}.kind = human: people are asked by `rondo annotate` about a file of pairs; write "
                    f"the run's with `rondo pairs`"
                )
            if asks_policy(judge):
                raise ValueError(
                    f"{section}.model = policy: the policy judges while it is trained; name one of its versions, e.g. "
                    f"{section}.model=RUN/model, or {section}.model=initial"
                )
        return self
