"""What samplers are asked for and what they answer."""

from __future__ import annotations

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

    def request(self, prompt: Prompt, index: int) -> SampleRequest:
        name = content_id(self.seed, self.purpose, self.step, prompt.id, index)
        seed = int(name, 16) % 2**31
        return SampleRequest(name, prompt.token_ids, self.max_tokens, self.temperature, self.top_p, seed)
