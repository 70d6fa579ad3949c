"""What all judges that are asked in words share: questions out, verdicts and grades back."""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from actors.judges.questions import Question, Questionnaire
from actors.judges.replies import Reply, Unanswered
from configs.judges import HttpJudge, LlmJudge
from preference.types import (
    CandidateGroup,
    JudgeFailure,
    JudgeInfo,
    Match,
    Outcome,
    Prompt,
    Rating,
    Response,
    Verdict,
)
from preference.verdicts import NoVerdict, VerdictRules, compare, mean_grade


class PromptedPool(ABC):
    """A ``Comparer`` in mode pairwise, a ``Rater`` in mode pointwise."""

    def __init__(self, judge: LlmJudge | HttpJudge, name: str) -> None:
        self.name = name
        self._questions = Questionnaire(judge)
        self._rules = VerdictRules(judge.tie_band, judge.min_mass)

    @abstractmethod
    async def _ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Replies in order. Raises JudgeError or StageFailed where the judge as a whole cannot go on."""

    @abstractmethod
    def _info(self, replies: Sequence[Reply]) -> JudgeInfo:
        """Who judged, by what was replied: without probabilities, or by other weights, it is another judge."""

    async def compare(self, matches: Sequence[Match]) -> list[Verdict | JudgeFailure]:
        """One result a match, in order. Every match is asked in both orders at once, all matches together."""
        self._require("pairwise", "compare")
        return list(await asyncio.gather(*(self._compare(match) for match in matches)))

    async def rate(self, groups: Sequence[CandidateGroup]) -> list[Rating | JudgeFailure]:
        """One result a candidate, group by group."""
        self._require("pointwise", "rate")
        return list(await asyncio.gather(*(self._rate(g.prompt, c) for g in groups for c in g.candidates)))

    async def _compare(self, match: Match) -> Verdict | JudgeFailure:
        started = time.monotonic()
        try:
            questions = self._questions.both_orders(match)
        except (ValueError, json.JSONDecodeError) as error:
            return self._failed(match.ids, [Unanswered(str(error))], started)
        replies = await self._ask(questions)
        forward, backward = replies
        if isinstance(forward, Unanswered) or isinstance(backward, Unanswered):
            return self._failed(match.ids, replies, started)
        try:
            decision = compare(forward.probabilities, backward.probabilities, self._rules)
        except NoVerdict as error:
            return self._failed(match.ids, [Unanswered(str(error)), *replies], started)
        return Verdict(
            *match.ids,
            decision.outcome,
            decision.probability,
            self._info(replies),
            order_flipped=decision.order_flipped,
            rationale="\n\n".join(r for r in (forward.rationale, backward.rationale) if r),
            seconds=time.monotonic() - started,
            cost=forward.cost + backward.cost,
        )

    async def _rate(self, prompt: Prompt, response: Response) -> Rating | JudgeFailure:
        started = time.monotonic()
        try:
            question = self._questions.grade(prompt, response)
        except (ValueError, json.JSONDecodeError) as error:
            return self._failed((response.id,), [Unanswered(str(error))], started)
        [reply] = await self._ask([question])
        if isinstance(reply, Unanswered):
            return self._failed((response.id,), [reply], started)
        try:
            grade = mean_grade(reply.probabilities, self._questions.grades, self._rules)
        except NoVerdict as error:
            return self._failed((response.id,), [Unanswered(str(error)), reply], started)
        return Rating(response.id, grade, self._info([reply]), reply.rationale, time.monotonic() - started, reply.cost)

    def _failed(self, ids: tuple[str, ...], replies: Sequence[Reply], started: float) -> JudgeFailure:
        return JudgeFailure(
            ids,
            Outcome.FAILED,
            "; ".join(dict.fromkeys(r.error for r in replies if isinstance(r, Unanswered))),
            self._info(replies),
            seconds=time.monotonic() - started,
            cost=sum(r.cost for r in replies),
        )

    def _require(self, mode: str, verb: str) -> None:
        if self._questions.mode != mode:
            raise ValueError(f"judge {self.name} has judge.mode={self._questions.mode}; to {verb} it needs {mode}")
