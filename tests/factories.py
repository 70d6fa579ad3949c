"""Small hand-made records for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
    ScoredPair,
    Version,
)

JUDGE = JudgeInfo("test", "0")
INITIAL = Version(0, 0)


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


def scored_pair(number: int, prompt_tokens: int, chosen_tokens: int, rejected_tokens: int) -> ScoredPair:
    name = f"p{number}"
    chosen = candidate(name, 0, chosen_tokens)
    rejected = candidate(name, 1, rejected_tokens, first_token=40)
    pair = Pair(f"pair{number}", prompt(name, prompt_tokens), chosen, rejected, 1.0)
    return ScoredPair(pair, np.full(chosen_tokens, -1.5, np.float32), np.full(rejected_tokens, -2.5, np.float32))
