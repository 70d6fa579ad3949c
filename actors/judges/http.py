"""HTTP judge: any OpenAI-compatible chat endpoint, asked by one actor that holds the key."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from actors.faults import StageFailed
from actors.judges.endpoint import LONGEST_PAUSE, Endpoint
from actors.judges.errors import JudgeError
from actors.judges.keys import read_key
from actors.judges.metering import Usage
from actors.judges.prompted import PromptedPool
from actors.judges.questions import Question, Questionnaire
from actors.judges.replies import Answered, Reply
from actors.pool import actor_options, remote_call
from actors.quiet import redirect_output
from configs.judges import HttpJudge
from configs.schema import Deadlines, Group
from preference.types import JudgeInfo


def definitions(judge: HttpJudge) -> tuple[str, str]:
    """What stands in the judge's judgements as their definition: with probabilities, and without.

    0 and 1 in place of probabilities are other values, so another definition. Raises JudgeError as ``Questionnaire``.
    """
    plain = Questionnaire(judge).definition(judge.url, judge.model)
    return plain, f"{plain}-text"


class HttpJudgeActor:
    """The endpoint, in one actor whatever the group says: rate limit, budget and key have one place."""

    def __init__(self, judge: HttpJudge, questions: Questionnaire, spent: float, log_file: str) -> None:
        redirect_output(Path(log_file))
        self._refusal = ""
        try:
            self._endpoint = Endpoint(judge, questions, read_key(judge), spent)
        except JudgeError as error:  # told by ``refusal``: what a constructor raises comes with Ray's tracebacks
            self._refusal = str(error)

    async def refusal(self) -> str:
        """Why it cannot judge; empty: it can."""
        return self._refusal

    async def ask(self, questions: Sequence[Question]) -> list[Reply]:
        return list(await asyncio.gather(*(self._endpoint.ask(q) for q in questions)))

    async def usage(self) -> Usage:
        return self._endpoint.usage


class HttpJudgePool(PromptedPool):
    """A ``Comparer`` or a ``Rater``, by ``judge.mode``."""

    def __init__(
        self, judge: HttpJudge, group: Group, deadlines: Deadlines, log_dir: Path, name: str, spent: float = 0.0
    ) -> None:
        """``spent`` is what the judge has cost in earlier attempts of the run; ``judge.budget`` is for all of them."""
        super().__init__(judge, judge.model)
        self._start_s = deadlines.start_s
        wait = judge.timeout_s + LONGEST_PAUSE
        if judge.requests_per_minute is not None:
            wait += 2 * judge.concurrency * 60.0 / judge.requests_per_minute
        # Two rounds of questions may be in the actor at a time, each with all its retries: longer than that is hung.
        self._call_s = max(deadlines.call_s, 2 * (judge.retries + 1) * wait)
        self._asking = asyncio.Semaphore(judge.concurrency)
        remote: Any = ray.remote(HttpJudgeActor)
        options = {**actor_options(group), "max_concurrency": 2 * judge.concurrency + 2}
        self._actor = remote.options(**options).remote(judge, self._questions, spent, str(log_dir / f"{name}-0.log"))
        plain, certain = definitions(judge)
        self._infos = {
            False: JudgeInfo(judge.model, plain),
            True: JudgeInfo(f"{judge.model} (answers without probabilities)", certain),
        }

    async def ready(self) -> None:
        """Raises JudgeError where there is no key or the answers cannot be told apart."""
        who = f"judge {self.name} (starting)"
        refusal: str = await remote_call(self._actor.refusal.remote(), who=who, seconds=self._start_s)
        if refusal:
            raise JudgeError(refusal)

    async def usage(self) -> Usage:
        """Requests, tokens and cost so far."""
        usage: Usage = await remote_call(self._actor.usage.remote(), who=f"judge {self.name}", seconds=self._start_s)
        return usage

    def _info(self, replies: Sequence[Reply]) -> JudgeInfo:
        return self._infos[any(isinstance(r, Answered) and r.certain for r in replies)]

    async def _ask(self, questions: Sequence[Question]) -> list[Reply]:
        async with self._asking:
            try:
                replies: list[Reply] = await remote_call(
                    self._actor.ask.remote(questions), who=f"judge {self.name}", seconds=self._call_s
                )
            except StageFailed as failed:
                cause = getattr(failed.__cause__, "cause", None)
                if isinstance(cause, JudgeError):
                    raise cause from None
                raise
        return replies

    def close(self) -> None:
        ray.kill(self._actor, no_restart=True)
