"""Judged candidates and trained pairs -> the figures and rows of a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from preference.judge_metrics import judge_metrics
from preference.league import LEAGUE, Result, Tally
from preference.pairing import ratings, scores
from preference.reports import Faced, OpponentMetrics, SampleMetrics, SampleRow
from preference.types import (
    POLICY,
    Candidate,
    JudgedGroup,
    Labelled,
    Pair,
    Response,
    Scored,
    Version,
    oldest_version,
)


def sample_metrics(judged: Sequence[JudgedGroup], opponents: OpponentMetrics | None = None) -> SampleMetrics:
    """Over every candidate of the policy, trained on or not; scores over those that have one (nan if none)."""
    candidates = [c for j in judged for c in j.group.own]
    rated = {i: s for j in judged for i, s in ratings(j).items()}
    scores = [rated[c.id] for c in candidates if c.id in rated]
    return SampleMetrics(
        score=_mean(scores),
        score_std=float(np.std(scores)) if scores else float("nan"),
        length=_mean(len(c.token_ids) for c in candidates),
        missing_eos=_mean(not c.finished for c in candidates),
        entropy=_mean(-sum(c.logprobs) for c in candidates),
        judge=judge_metrics(judged),
        opponents=opponents,
    )


def faced(results: Iterable[Result]) -> tuple[Faced, ...]:
    """A row an opponent, in alphabetical order, and one a member of the league."""
    tallies: dict[str, Tally] = {}
    for r in results:
        names = [r.player, f"{LEAGUE}/{r.version}"] if r.player == LEAGUE else [r.player]
        for name in names:
            tallies[name] = tallies.get(name, Tally()) + r
    return tuple(Faced(name, tally.games, tally.win_rate) for name, tally in sorted(tallies.items()))


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
    if not isinstance(response, Candidate):
        return response.player
    version = str(response.version_max)
    return version if response.player == POLICY else f"{response.player} {version}"


def ages(scored: Sequence[Scored], current: Version) -> tuple[int, ...]:
    """How many versions old each item is when it is trained; items that no policy sampled have no age."""
    versions = (oldest_version(s.item) for s in scored)
    return tuple(version.age_at(current) for version in versions if version is not None)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return float(np.mean(listed)) if listed else float("nan")
