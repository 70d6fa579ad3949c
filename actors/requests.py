"""What samplers are asked for and what they answer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from preference.types import FinishReason, Prompt, Version, content_id


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One response to be sampled. A request a candidate: each has its own seed, the prefix cache shares the prompt."""

    id: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: str = ""
    """Text that ends the response early, and is not part of it; empty: only the end of the turn does."""


@dataclass(frozen=True, slots=True)
class ChoiceRequest:
    """A question with a few allowed answers, each told by the token that comes next.

    One token is generated, from ``options`` alone; wanted are its log-probs *before* that constraint.
    """

    id: str
    prompt_ids: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    """The token ids that express each answer; no id expresses two."""


Request = SampleRequest | ChoiceRequest


@dataclass(frozen=True, slots=True)
class Sampled:
    """A finished request. ``logprobs`` are of the untempered distribution, one a token of ``token_ids``."""

    request_id: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    version_min: Version
    version_max: Version


@dataclass(frozen=True, slots=True)
class Chosen:
    """The answer to a ``ChoiceRequest``."""

    request_id: str
    logprobs: tuple[tuple[float, ...], ...]
    """log-probs of ``options``, in their shape, of the whole vocabulary's distribution, in nats."""
    version: Version
    """The weights that answered; one token has no others."""

    @property
    def probabilities(self) -> tuple[float, ...]:
        """P of each answer; what is missing to 1 went to other words."""
        return tuple(math.fsum(map(math.exp, option)) for option in self.logprobs)


Finished = Sampled | Chosen


@dataclass(frozen=True, slots=True)
class Health:
    version: Version
    running: int
    generated_tokens: int  # since the engine started
    load_seconds: float  # of the last weight load


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """How a set of prompts is to be answered. ``purpose`` and ``step`` go into every seed and candidate id."""

    step: int
    purpose: str  # train | probe | eval
    candidates: int
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    first: int = 0
    """Number of its first prompt in the batch: decides, where several engines share them, which prompt goes where."""

    def request(self, prompt: Prompt, index: int) -> SampleRequest:
        name = content_id(self.seed, self.purpose, self.step, prompt.id, index)
        seed = int(name, 16) % 2**31
        return SampleRequest(name, prompt.token_ids, self.max_tokens, self.temperature, self.top_p, seed)
