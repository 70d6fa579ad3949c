"""Small hand-made records for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from preference.reports import JudgeMetrics, TrainMetrics
from preference.types import (
    Candidate,
    CandidateGroup,
    FinishReason,
    JudgedGroup,
    JudgeInfo,
    Message,
    Pair,
    Prompt,
    Rating,
    Scored,
    Version,
)

JUDGE = JudgeInfo("test", "0")
INITIAL = Version(0, 0)
TRAINED = TrainMetrics(
    loss=0.61, grad_norm=3.0, lr=5e-5, rewards_chosen=0.3, rewards_rejected=0.1, rewards_margins=0.2,
    rewards_accuracies=0.71, logps_chosen=-80.0, logps_rejected=-90.0, log_ratio_chosen=3.0, log_ratio_rejected=1.0,
    kl=2.0, length_ratio=1.1, mismatch=0.031, items=14, tokens=2318, waiting=0.04, scalars={},
)  # fmt: skip

JUDGING = JudgeMetrics(
    judgements=14, ties=0.1, flips=0.2, abstained=0, failed=0, cost=0.0, seconds=0.1, overruled=0,
    agreement=0.8, kappa=0.6, longest=0.6,
)  # fmt: skip


def prompt(name: str = "p", tokens: int = 3) -> Prompt:
    return Prompt(name, (Message("user", f"say {name}"),), tuple(range(1, tokens + 1)))


def candidate(
    prompt_id: str = "p",
    index: int = 0,
    tokens: int = 2,
    finish: FinishReason = FinishReason.STOP,
    version: Version = INITIAL,
    first_token: int = 10,
) -> Candidate:
    ids = tuple(range(first_token + index, first_token + index + tokens))
    return Candidate(
        f"{prompt_id}/{index}", prompt_id, index, ids, (-1.0,) * tokens, f"text {index}", finish, version, version
    )


def judged(scores: Sequence[float | None], name: str = "p", **overrides: object) -> JudgedGroup:
    """One candidate a score; None: the judge left it unrated."""
    candidates = tuple(candidate(name, i, **overrides) for i in range(len(scores)))  # type: ignore[arg-type]
    ratings = tuple(Rating(c.id, s, JUDGE) for c, s in zip(candidates, scores, strict=True) if s is not None)
    return JudgedGroup(CandidateGroup(prompt(name), candidates), ratings)


def scored_pair(number: int, prompt_tokens: int, chosen_tokens: int, rejected_tokens: int) -> Scored:
    name = f"p{number}"
    chosen = candidate(name, 0, chosen_tokens)
    rejected = candidate(name, 1, rejected_tokens, first_token=40)
    pair = Pair(f"pair{number}", prompt(name, prompt_tokens), chosen, rejected, 1.0)
    return Scored(pair, (np.full(chosen_tokens, -1.5, np.float32), np.full(rejected_tokens, -2.5, np.float32)))
