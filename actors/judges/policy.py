"""The policy judges itself (Yuan et al., "Self-Rewarding Language Models", 2401.10020), on the samplers' engines.

    matches ──questions of both orders──> samplers' engines, between the sampling requests, with the weights they serve
            <──────────verdicts─────────  probabilities of the allowed answers, stamped with those weights

Template, grammar, orders, tie band and mass are those of ``LlmJudgePool``; what differs is who answers, and that it
learns. It has no actors of its own, hence nothing to start, nothing to place and no second copy of the weights.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from actors.judges.asking import Asking, Asks, answered_by
from actors.judges.errors import JudgeError
from actors.judges.prompted import PromptedPool
from actors.judges.questions import Question
from actors.judges.replies import Answered, Reply
from actors.requests import Finished, Request
from configs.judges import LlmJudge
from preference.types import JudgeInfo

NAME = "policy"


class Engines(Protocol):
    """Who serves the policy: ``actors.sampler.SamplerPool``."""

    async def ask(self, requests: Sequence[Request]) -> list[Finished]:
        """Finish requests, in order, with the weights that are served; calls may overlap."""
        ...


class PolicyJudge(PromptedPool):
    """A ``Comparer`` or a ``Rater``, by ``judge.mode``."""

    def __init__(self, judge: LlmJudge, engines: Engines, model: str, max_model_len: int, name: str) -> None:
        """``model``: directory of the tokenizer. ``max_model_len``: the engines'. ``name``: unique among judges."""
        super().__init__(judge, NAME)
        self._engines, self._model, self._longest, self._ids = engines, model, max_model_len, name
        self._asking: Asking | None = None
        self._definition = self._questions.definition(NAME)

    async def ready(self) -> None:
        """Raises JudgeError where the policy's tokenizer cannot express the answers or no question can fit."""
        asks = Asks(self._questions.labels, self._questions.rationale, self._questions.probe)
        knob = "sampling.max_model_len"
        self._asking = await asyncio.to_thread(Asking, asks, self._model, self._longest, knob, self._ids)
        if self._asking.shortest >= self._longest:
            raise JudgeError(
                f"judge.model = policy: template and guidelines alone have {self._asking.shortest} tokens, "
                f"{knob} is {self._longest}: raise it, or shorten them"
            )

    def _info(self, replies: Sequence[Reply]) -> JudgeInfo:
        """Two versions where the weights were replaced between the two orders."""
        weights = dict.fromkeys(r.weights for r in replies if isinstance(r, Answered))
        return JudgeInfo(NAME, self._definition, ", ".join(weights))

    async def _ask(self, questions: Sequence[Question]) -> list[Reply]:
        assert self._asking is not None, "ready() comes first"
        return await answered_by(self._asking.put(questions), self._engines.ask)

    def close(self) -> None:
        """The engines are the samplers'."""
