"""Several people's verdicts on one record -> one preference: the mean decides, a tie is half a vote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pipelines.data.records import Context, Preference
from pipelines.data.report import Reason, Unfit


@dataclass(frozen=True, slots=True)
class Subject:
    """What was annotated."""

    context: Context
    responses: Mapping[str, str]
    """Texts by field name, in the record's order."""


def by_votes(subject: Subject, votes: Sequence[float]) -> Preference:
    """Two responses; a vote is 1 for the first, 0 for the second, 0.5 for a tie."""
    if not votes:
        raise Unfit(Reason.UNANNOTATED)
    share = fmean(votes)
    if share == 0.5:
        raise Unfit(Reason.TIE, f"{len(votes)} verdicts")
    first, second = subject.responses.values()
    if share > 0.5:
        return Preference(subject.context, first, second, 1.0, share)
    return Preference(subject.context, second, first, 1.0, 1 - share)


def by_scores(subject: Subject, rounds: Sequence[Mapping[str, float]]) -> Preference:
    """Best against worst by mean score over the people; only responses that everybody scored count."""
    names = [n for n in subject.responses if all(n in scores for scores in rounds)]
    if len(names) < 2:
        raise Unfit(Reason.UNANNOTATED, "no two responses were scored by everybody")
    means = {n: fmean(scores[n] for scores in rounds) for n in names}
    best, worst = max(names, key=lambda n: means[n]), min(names, key=lambda n: means[n])
    margin = means[best] - means[worst]
    votes = [0.5 if s[best] == s[worst] else float(s[best] > s[worst]) for s in rounds]
    if margin == 0 or fmean(votes) <= 0.5:
        raise Unfit(Reason.TIE, f"{len(rounds)} verdicts")
    return Preference(subject.context, subject.responses[best], subject.responses[worst], margin, fmean(votes))
