"""What is wrong with preference data, if anything: length bias, sameness, formatting, the judge's doubts, coverage.

``Corpus`` is what is examined, whether it came from a run or from a file; ``diagnose`` measures it and ``warnings``
says in words what a careful reader would object to.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from preference.agreement import Share, accuracy_without_ties, cohens_kappa, longest_wins
from preference.texts import distinct_n, near_duplicates, same_but_for_formatting, words
from preference.tournament import share
from preference.types import JudgedGroup, JudgeFailure, Outcome, Rating, Verdict

_CODES = {Outcome.FIRST: 0, Outcome.SECOND: 1, Outcome.TIE: 2}


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, its length in the corpus's unit, and its score if it has one (nan if not)."""

    prompt: str
    text: str
    length: int
    score: float = math.nan


@dataclass(frozen=True, slots=True)
class Preferred:
    """A pair as text."""

    prompt: str
    chosen: Answer
    rejected: Answer
    margin: float
    probability: float = 1.0
    tied: bool = False


@dataclass(frozen=True, slots=True)
class Graded:
    """A labelled response as text."""

    answer: Answer
    desirable: bool


@dataclass(frozen=True, slots=True)
class Corpus:
    source: str
    unit: str  # of lengths: tokens or words
    counted: str  # what ``fates`` count: prompts of a run, records of a file
    answers: tuple[Answer, ...]  # every response, used or not
    pairs: tuple[Preferred, ...]
    labels: tuple[Graded, ...]
    fates: Mapping[str, int]
    prompts: int
    judged: tuple[JudgedGroup, ...] = ()  # what the judge said; files do not tell


@dataclass(frozen=True, slots=True)
class LengthBias:
    chosen: float  # mean length of chosen, or desirable, responses; nan without any
    rejected: float
    longest_wins: Share  # of pairs with a winner and unequal lengths
    correlation: float  # of score and length within prompts; of margin and difference where there are no scores

    @property
    def difference(self) -> float:
        return self.chosen - self.rejected


@dataclass(frozen=True, slots=True)
class Diversity:
    responses: int
    distinct: tuple[float, float, float]  # distinct-1, -2, -3
    near_duplicates: Share  # responses with a near copy among all of them
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Judging:
    """What the judge did. Shares are of all judgements; flips of verdicts alone."""

    judgements: int
    ties: Share
    flipped: Share
    abstained: Share
    failed: Share
    matches: int
    round_robin: int  # matches that every candidate against every other would have taken
    seconds: float  # of a judgement, mean
    cost: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two judges of the same matches."""

    judge: str
    reference: str
    matches: int
    accuracy: Share  # where neither says tie
    kappa: float
    longest: Share  # how often the longer response is the one that the reference prefers


@dataclass(frozen=True, slots=True)
class Diagnosis:
    corpus: Corpus
    length: LengthBias
    diversity: Diversity
    formatting_only: Share
    contradicted: Share  # pairs that stand the other way round elsewhere
    ties: Share  # pairs that are kept ties
    margins: tuple[float, ...]  # of decided pairs, in order of size
    per_prompt: Mapping[int, int]  # items a prompt -> prompts
    judging: Judging | None
    agreement: tuple[Agreement, ...]


def diagnose(corpus: Corpus) -> Diagnosis:
    """Everything that is measured of a corpus."""
    decided = [p for p in corpus.pairs if not p.tied]
    seen = {(p.prompt, p.chosen.text, p.rejected.text) for p in decided}
    items = Counter([p.prompt for p in corpus.pairs] + [g.answer.prompt for g in corpus.labels])
    per_prompt = Counter(items.values())
    if unused := corpus.prompts - len(items):
        per_prompt[0] = unused
    formatting = sum(same_but_for_formatting(p.chosen.text, p.rejected.text) for p in corpus.pairs)
    return Diagnosis(
        corpus=corpus,
        length=_length(corpus, decided),
        diversity=_diversity(corpus.answers),
        formatting_only=Share.of(formatting, len(corpus.pairs)),
        contradicted=Share.of(sum((p.prompt, p.rejected.text, p.chosen.text) in seen for p in decided), len(decided)),
        ties=Share.of(len(corpus.pairs) - len(decided), len(corpus.pairs)),
        margins=tuple(sorted(p.margin for p in decided)),
        per_prompt=dict(sorted(per_prompt.items())),
        judging=_judging(corpus.judged) if corpus.judged else None,
        agreement=_agreement(corpus.judged),
    )


def _length(corpus: Corpus, decided: Sequence[Preferred]) -> LengthBias:
    chosen = [p.chosen.length for p in decided] + [g.answer.length for g in corpus.labels if g.desirable]
    rejected = [p.rejected.length for p in decided] + [g.answer.length for g in corpus.labels if not g.desirable]
    longer = longest_wins(
        [1.0] * len(decided), [p.chosen.length for p in decided], [p.rejected.length for p in decided]
    )
    correlation = _within_prompts(corpus.answers)
    if math.isnan(correlation):
        correlation = _of_margins(decided)
    return LengthBias(_mean(chosen), _mean(rejected), longer, correlation)


def _within_prompts(answers: Sequence[Answer]) -> float:
    """Pearson correlation of score and length, both less their prompt's mean; nan without scores or spread."""
    groups: dict[str, list[Answer]] = {}
    for a in answers:
        if not math.isnan(a.score):
            groups.setdefault(a.prompt, []).append(a)
    centred = [
        np.array([(a.score, a.length) for a in group]) - np.mean([(a.score, a.length) for a in group], axis=0)
        for group in groups.values()
    ]
    return _cosine(*np.concatenate(centred).T) if centred else math.nan


def _of_margins(decided: Sequence[Preferred]) -> float:
    """Correlation of margin and length difference, every pair counted both ways round; nan without spread."""
    margins = np.array([p.margin for p in decided])
    return _cosine(margins, np.array([float(p.chosen.length - p.rejected.length) for p in decided]))


def _cosine(one: np.ndarray, other: np.ndarray) -> float:  # type: ignore[type-arg]
    scale = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / scale if scale > 0 else math.nan


def _diversity(answers: Sequence[Answer]) -> Diversity:
    texts = [words(a.text) for a in answers]
    twins = near_duplicates(texts)
    copies = [(i, t) for i, t in enumerate(twins) if t is not None]
    examples = tuple((answers[i].text, answers[t].text) for i, t in copies if i < t)[:5]
    distinct = (distinct_n(texts, 1), distinct_n(texts, 2), distinct_n(texts, 3))
    return Diversity(len(answers), distinct, Share.of(len(copies), len(answers)), examples)


def _judging(judged: Sequence[JudgedGroup]) -> Judging:
    said = [j for g in judged for j in g.judgements]
    verdicts = [j for j in said if isinstance(j, Verdict)]
    outcomes = Counter(j.outcome for j in said if not isinstance(j, Rating))
    matched = [g for g in judged if any(_is_match(j) for j in g.judgements)]
    sizes = [len(g.group.candidates) for g in matched]
    return Judging(
        judgements=len(said),
        ties=Share.of(outcomes[Outcome.TIE], len(said)),
        flipped=Share.of(sum(v.order_flipped for v in verdicts), len(verdicts)),
        abstained=Share.of(outcomes[Outcome.ABSTAIN], len(said)),
        failed=Share.of(outcomes[Outcome.FAILED], len(said)),
        matches=len({(i, m) for i, g in enumerate(matched) for j in g.judgements if (m := _is_match(j))}),
        round_robin=sum(n * (n - 1) // 2 for n in sizes),
        seconds=_mean([j.seconds for j in said]),
        cost=math.fsum(j.cost for j in said),
    )


def _is_match(judgement: Rating | Verdict | JudgeFailure) -> frozenset[str]:
    """The ids of the two that were compared; empty for anything else."""
    if isinstance(judgement, Verdict):
        return frozenset((judgement.first_id, judgement.second_id))
    of_two = isinstance(judgement, JudgeFailure) and len(judgement.candidate_ids) == 2
    return frozenset(judgement.candidate_ids) if isinstance(judgement, JudgeFailure) and of_two else frozenset()


def _agreement(judged: Sequence[JudgedGroup]) -> tuple[Agreement, ...]:
    """Every two judges that gave a verdict on the same matches, each measured by the other."""
    by_judge: dict[str, dict[tuple[str, ...], Outcome]] = {}
    lengths: dict[str, int] = {}
    for group in judged:
        lengths |= {c.id: len(c.token_ids) for c in group.group.candidates}
        for j in group.judgements:
            if isinstance(j, Verdict) and share(j) is not None:
                swapped = {Outcome.FIRST: Outcome.SECOND, Outcome.SECOND: Outcome.FIRST, Outcome.TIE: Outcome.TIE}
                outcome = j.outcome if j.first_id < j.second_id else swapped[j.outcome]
                by_judge.setdefault(j.judge.name, {})[tuple(sorted((j.first_id, j.second_id)))] = outcome
    worth = {Outcome.FIRST: 1.0, Outcome.SECOND: 0.0, Outcome.TIE: 0.5}
    found = []
    for judge, reference in permutations(sorted(by_judge), 2):
        shared = [m for m in by_judge[judge] if m in by_judge[reference]]
        if shared:
            ours, theirs = ([by_judge[name][m] for m in shared] for name in (judge, reference))
            known = [worth[o] for o in theirs]
            first, second = ([float(lengths.get(m[i], 0)) for m in shared] for i in (0, 1))
            kappa = cohens_kappa([_CODES[o] for o in ours], [_CODES[o] for o in theirs])
            accuracy = accuracy_without_ties([worth[o] for o in ours], known)
            found.append(Agreement(judge, reference, len(shared), accuracy, kappa, longest_wins(known, first, second)))
    return tuple(found)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


# -- what follows from it --------------------------------------------------------------------------------------------

METRICS: dict[str, str] = {
    "data/length_difference": "Mean length of chosen minus rejected responses",
    "data/longest_wins": "Share of decided pairs whose chosen response is the longer one; 0.5 is no length bias",
    "data/length_correlation": "Correlation of judge score and length within prompts",
    "data/distinct_1": "Different words over all words of all responses",
    "data/distinct_2": "Different bigrams over all bigrams of all responses",
    "data/distinct_3": "Different trigrams over all trigrams of all responses",
    "data/near_duplicates": "Share of responses with a near copy among the others (trigram Jaccard >= 0.8)",
    "data/formatting_only": "Share of pairs that differ in markup, white space, case or punctuation alone",
    "data/contradicted": "Share of pairs that stand the other way round elsewhere",
    "data/ties": "Share of pairs that are kept ties",
    "data/margin": "Mean margin of decided pairs, in the judge's units",
    "data/prompts_used": "Share of prompts that gave at least one item",
    "judge/ties": "Share of judgements that are ties",
    "judge/flipped": "Share of verdicts whose two orders of presentation contradict each other",
    "judge/abstained": "Share of judgements that the judge abstained from",
    "judge/failed": "Share of judgements that failed",
    "judge/matches_saved": "Share of a full round robin's matches that were not needed",
}
"""Every scalar of ``scalars`` and its meaning."""


def scalars(d: Diagnosis) -> dict[str, float]:
    """A diagnosis as numbers for tracking; what is not defined is absent."""
    values: dict[str, float | None] = {
        "data/length_difference": d.length.difference,
        "data/longest_wins": d.length.longest_wins.rate,
        "data/length_correlation": d.length.correlation,
        **{f"data/distinct_{n}": v for n, v in enumerate(d.diversity.distinct, start=1)},
        "data/near_duplicates": d.diversity.near_duplicates.rate,
        "data/formatting_only": d.formatting_only.rate,
        "data/contradicted": d.contradicted.rate,
        "data/ties": d.ties.rate,
        "data/margin": _mean(d.margins),
        "data/prompts_used": 1 - d.per_prompt.get(0, 0) / d.corpus.prompts if d.corpus.prompts else None,
    }
    if d.judging:
        j = d.judging
        values |= {"judge/ties": j.ties.rate, "judge/flipped": j.flipped.rate}
        values |= {"judge/abstained": j.abstained.rate, "judge/failed": j.failed.rate}
        values["judge/matches_saved"] = 1 - j.matches / j.round_robin if j.round_robin else None
    return {name: v for name, v in values.items() if v is not None and not math.isnan(v)}
