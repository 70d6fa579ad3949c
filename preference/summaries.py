"""Judged candidates and trained pairs -> the figures and rows of a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from preference.judge_metrics import judge_metrics
from preference.pairing import ratings, scores
from preference.reports import SampleMetrics, SampleRow
from preference.types import (
    Candidate,
    JudgedGroup,
    Labelled,
    Pair,
    Response,
    Scored,
    Version,
    oldest_version,
)


def sample_metrics(judged: Sequence[JudgedGroup]) -> SampleMetrics:
    """Over every candidate of ``judged``, trained on or not; scores over those that have one (nan if none)."""
    candidates = [c for j in judged for c in j.group.sampled]
    scores = [s for j in judged for s in ratings(j).values()]
    return SampleMetrics(
        score=_mean(scores),
        score_std=float(np.std(scores)) if scores else float("nan"),
        length=_mean(len(c.token_ids) for c in candidates),
        missing_eos=_mean(not c.finished for c in candidates),
        entropy=_mean(-sum(c.logprobs) for c in candidates),
        judge=judge_metrics(judged),
    )


def sample_rows(judged: Sequence[JudgedGroup], scored: Sequence[Scored]) -> tuple[SampleRow, ...]:
    """One row a candidate, saying what became of it."""
    pairs = [s.item for s in scored if isinstance(s.item, Pair)]
    labelled = [s.item for s in scored if isinstance(s.item, Labelled)]
    chosen = {p.chosen.id for p in pairs} | {i.response.id for i in labelled if i.desirable}
    rejected = {p.rejected.id for p in pairs} | {i.response.id for i in labelled if not i.desirable}
    rows = []
    for j in judged:
        known = scores(j)
        for c in j.group.candidates:
            role = "chosen" if c.id in chosen else "rejected" if c.id in rejected else "unused"
            score = known.get(c.id, float("nan"))
            rows.append(
                SampleRow(j.group.prompt.id, j.group.prompt.text, c.text, score, role, _origin(c), len(c.token_ids))
            )
    return tuple(rows)


def _origin(response: Response) -> str:
    return str(response.version_max) if isinstance(response, Candidate) else response.player


def ages(scored: Sequence[Scored], current: Version) -> tuple[int, ...]:
    """How many versions old each item is when it is trained; items that no policy sampled have no age."""
    versions = (oldest_version(s.item) for s in scored)
    return tuple(version.age_at(current) for version in versions if version is not None)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return float(np.mean(listed)) if listed else float("nan")
