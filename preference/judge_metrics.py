"""What the judgements of an iteration say about the judge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from preference.agreement import Share, accuracy_without_ties, cohens_kappa, longest_wins
from preference.reports import JudgeMetrics
from preference.types import JudgedGroup, JudgeFailure, Judgement, Outcome, Response, Verdict

_VALUE = {Outcome.FIRST: 1.0, Outcome.SECOND: 0.0, Outcome.TIE: 0.5}


def judge_metrics(judged: Sequence[JudgedGroup]) -> JudgeMetrics:
    """Rates over the judgements that stand; how far a judge that was overruled agrees with the one that did."""
    stand = [j for g in judged for j in g.judgements]
    everything = [*stand, *(j for g in judged for j in g.overruled)]
    verdicts = [j for j in stand if isinstance(j, Verdict)]
    failures = [j for j in stand if isinstance(j, JudgeFailure)]
    compared = list(_compared(judged))
    first, then = [c.first for c in compared], [c.then for c in compared]
    return JudgeMetrics(
        judgements=len(stand),
        ties=_share(v.outcome is Outcome.TIE for v in verdicts),
        flips=_share(v.order_flipped for v in everything if isinstance(v, Verdict)),
        abstained=len([f for f in failures if f.outcome is Outcome.ABSTAIN]),
        failed=len([f for f in failures if f.outcome is Outcome.FAILED]),
        cost=sum(j.cost for j in everything),
        seconds=sum(j.seconds for j in everything) / len(everything) if everything else float("nan"),
        overruled=len(compared),
        agreement=_rate(accuracy_without_ties(first, then)),
        kappa=cohens_kappa([int(2 * x) for x in first], [int(2 * x) for x in then]),
        longest=_rate(longest_wins(*_by_length(judged))),
    )


@dataclass(frozen=True, slots=True)
class _Compared:
    """One match that two judges had a verdict on."""

    first: float
    then: float
    lengths: tuple[int, int]


def _compared(judged: Iterable[JudgedGroup]) -> Iterable[_Compared]:
    for group in judged:
        said = {(j.first_id, j.second_id): j for j in group.overruled if isinstance(j, Verdict)}
        lengths = _lengths(group)
        for j in group.judgements:
            if isinstance(j, Verdict) and (j.first_id, j.second_id) in said:
                ids = j.first_id, j.second_id
                yield _Compared(_VALUE[said[ids].outcome], _VALUE[j.outcome], (lengths[ids[0]], lengths[ids[1]]))


def _by_length(judged: Iterable[JudgedGroup]) -> tuple[list[float], list[float], list[float]]:
    outcomes: list[float] = []
    first: list[float] = []
    second: list[float] = []
    for group in judged:
        lengths = _lengths(group)
        for j in group.judgements:
            if isinstance(j, Verdict) and j.outcome in _VALUE:
                outcomes.append(_VALUE[j.outcome])
                first.append(lengths[j.first_id])
                second.append(lengths[j.second_id])
    return outcomes, first, second


def _lengths(group: JudgedGroup) -> dict[str, int]:
    candidates: tuple[Response, ...] = group.group.candidates
    return {c.id: len(c.token_ids) for c in candidates}


def _share(values: Iterable[bool]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else float("nan")


def _rate(share: Share) -> float:
    return float("nan") if share.rate is None else share.rate


class Trust:
    """Compares a judge with those that overrule it, and both with "pick the longer one", over the steps of a run."""

    _LEAST = 20  # matches; fewer say nothing

    def __init__(self) -> None:
        self._compared: list[_Compared] = []
        self._warned = False

    def update(self, step: int, judged: Sequence[JudgedGroup]) -> str | None:
        """A warning, once: the judge agrees with its betters no more often than the longer response does."""
        self._compared += _compared(judged)
        then = [c.then for c in self._compared]
        judge = accuracy_without_ties([c.first for c in self._compared], then)
        longer = longest_wins(then, [c.lengths[0] for c in self._compared], [c.lengths[1] for c in self._compared])
        enough = judge.n >= self._LEAST and longer.n >= self._LEAST
        if self._warned or not enough or judge.rate is None or longer.rate is None or judge.rate > longer.rate:
            return None
        self._warned = True
        return (
            f'step {step}: the judge is not better than "pick the longer one": on {judge.n} matches that were judged '
            f"again it was right in {judge.rate:.0%}, the longer response in {longer.rate:.0%} of {longer.n}; look at "
            f"its guidelines, take a better model, or escalate more (judge.below)"
        )


def failures(judgements: Iterable[Judgement]) -> list[JudgeFailure]:
    """Abstaining is an answer, failing is not."""
    return [j for j in judgements if isinstance(j, JudgeFailure) and j.outcome is Outcome.FAILED]
