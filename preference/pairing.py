"""Candidates and judgements -> a prompt's items to train on, and exactly one fate for every prompt.

A judge that rates gives every candidate a score; one that compares decides a tournament (``preference.tournament``),
whose verdicts become Bradley-Terry scores where a strategy needs them. From there on both go the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from preference.bradley_terry import Game, Strengths, components, strengths
from preference.strategies import SEVERAL_PAIRS as SEVERAL_PAIRS
from preference.strategies import MissingEos as MissingEos
from preference.strategies import PairingRules as PairingRules
from preference.strategies import Strategy as Strategy
from preference.strategies import Two, select, sides, spin_pair
from preference.tournament import Goal, distinct, games, share, standing_of
from preference.tournament import next_matches as next_round
from preference.types import (
    CandidateGroup,
    Fate,
    Item,
    JudgedGroup,
    JudgeFailure,
    Judgement,
    Labelled,
    Match,
    Outcome,
    Pair,
    Prompt,
    Rating,
    Response,
    Verdict,
    content_id,
)

CERTAIN = 1e-6  # a judge's probability counts as at least this and at most 1 - this: 13.8 in log-odds

NEGLIGIBLE = 1e-9  # a mean of equal scores differs from them by rounding


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a prompt: its items (none, one or several) and its fate, which is TRAINED if there are any."""

    items: tuple[Item, ...]
    fate: Fate


def ratings(judged: JudgedGroup) -> dict[str, float]:
    """Score of every candidate that the judge rated, by candidate id."""
    return {j.candidate_id: j.value for j in judged.judgements if isinstance(j, Rating)}


def scores(judged: JudgedGroup) -> dict[str, float]:
    """Score of every candidate by id, without penalties: as rated, or Bradley-Terry log-odds of the verdicts.

    Those that no chain of verdicts connects with most of the others have none.
    """
    if rated := ratings(judged):
        return rated
    played = games(judged.judgements)
    return _connected(strengths(played), played) if played else {}


def _connected(fitted: Strengths, played: Sequence[Game]) -> dict[str, float]:
    largest = components(played)[0]
    return {name: float(s) for name, s in zip(fitted.players, fitted.values, strict=True) if name in largest}


def next_matches(judged: JudgedGroup, rules: PairingRules) -> tuple[Match, ...]:
    """What a judge that compares is asked next, all at once; empty when ``make_items`` can decide.

    Ask until there is nothing to ask: the judgements of ``judged`` are all the state there is.
    """
    field = _field(judged, rules)
    if isinstance(field, Fate) or rules.strategy == "spin":
        return ()
    group = CandidateGroup(judged.group.prompt, field.candidates)
    return next_round(group, _penalised(judged, rules), goal_of(rules), rules.seed, {c.id for c in field.may_win})


def goal_of(rules: PairingRules) -> Goal:
    """What a tournament has to decide for the strategy."""
    if rules.strategy == "versus":
        return "across"
    if rules.tournament == "knockout":
        if rules.strategy == "best_vs_worst":
            return "best_and_worst"
        if rules.strategy == "best_vs_random":
            return "best_and_other"
        if rules.strategy == "random":
            return "two"
    return "all"


def make_items(judged: JudgedGroup, rules: PairingRules) -> Made:
    """The items of one prompt. Ties, failures and cut-off responses become fates, never preferences.

    Differences within ``min_margin`` are ties: the first sample does not win by being first. Of candidates with equal
    token ids one stays.
    """
    field = _field(judged, rules)
    if isinstance(field, Fate):
        return Made((), field)
    if rules.strategy == "spin":
        return _spin(judged.group.prompt, field, rules)
    if any(isinstance(j, Verdict) for j in judged.judgements):
        return _from_verdicts(judged, field, rules)
    return _from_ratings(judged, field, rules)


# -- who takes part --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Field:
    candidates: tuple[Response, ...]  # no two with the same ids
    may_win: tuple[Response, ...]  # those that may be chosen, or desirable

    def scored(self, scores: Mapping[str, float]) -> _Field:
        """Those of them that have a score."""
        have = [tuple(c for c in part if c.id in scores) for part in (self.candidates, self.may_win)]
        return _Field(have[0], have[1])


def _field(judged: JudgedGroup, rules: PairingRules) -> _Field | Fate:
    """Who takes part, or the fate of a prompt that no judge could make anything of."""
    candidates = judged.group.candidates
    if not _two_sided(candidates, rules):
        return Fate.UNOPPOSED
    if rules.missing_eos == "drop":
        candidates = tuple(c for c in candidates if c.finished)
        if not _enough(candidates, rules):
            return Fate.UNFINISHED
    candidates = distinct(candidates, preferred=ratings(judged))
    if not _enough(candidates, rules):
        return Fate.IDENTICAL
    may_win = candidates
    if rules.missing_eos == "never_chosen":
        may_win = tuple(c for c in candidates if c.finished)
        if not may_win and rules.strategy != "labels":
            return Fate.UNFINISHED
    return _Field(candidates, may_win)


def _enough(candidates: Sequence[Response], rules: PairingRules) -> bool:
    """One response can be compared with a fixed threshold, but not with another, nor with a mean."""
    needed = 1 if rules.strategy == "labels" and rules.threshold != "mean" else 2
    return len(candidates) >= needed and _two_sided(candidates, rules)


def _two_sided(candidates: Sequence[Response], rules: PairingRules) -> bool:
    """Whether both sides that a pair has to join are there, where the strategy knows sides."""
    both = sides(candidates, rules.strategy)
    return both is None or all(both)


def _why_unjudged(judged: JudgedGroup) -> Fate:
    """Why too few candidates can be compared: what failed is a failure, what nobody has judged yet is waiting."""
    failures = [j.outcome for j in judged.judgements if isinstance(j, JudgeFailure)]
    failures += [j.outcome for j in judged.judgements if isinstance(j, Verdict) and share(j) is None]
    if not failures:
        return Fate.WAITING
    return Fate.ABSTAINED if all(o is Outcome.ABSTAIN for o in failures) else Fate.JUDGE_FAILED


# -- what the judge says of them -------------------------------------------------------------------------------------

Compare = Callable[[Response, Response], tuple[float, float] | None]
"""(margin of the first over the second, P(first is better)); None where nothing tells."""


def _from_ratings(judged: JudgedGroup, field: _Field, rules: PairingRules) -> Made:
    handicaps = _handicaps(judged, rules)
    own = {i: s - handicaps[i] for i, s in ratings(judged).items() if i in handicaps}
    return _decide(judged, field, own, lambda a, b: (own[a.id] - own[b.id], 1.0), rules)


def _from_verdicts(judged: JudgedGroup, field: _Field, rules: PairingRules) -> Made:
    verdicts = _penalised(judged, rules)
    played, goal = games(verdicts), goal_of(rules)
    standing = standing_of(field.candidates, verdicts, goal, rules.seed, {c.id for c in field.may_win})
    if standing.open:
        return Made((), Fate.WAITING)
    if not played:
        return Made((), _why_unjudged(judged))
    fitted = strengths(played)
    compare = _by_verdicts(verdicts, fitted)
    if standing.best is None or standing.other is None:
        return _decide(judged, field, _connected(fitted, played), compare, rules)
    if standing.best is standing.other:  # it beats and loses to the same: the judge contradicts itself
        return Made((), Fate.UNFINISHED if len(field.may_win) == 1 else Fate.TIED)
    return _pairs(judged, field, [(standing.best, standing.other)], compare, rules)


def _by_verdicts(verdicts: Sequence[Judgement], fitted: Strengths) -> Compare:
    """A verdict on the two themselves has the last word; others speak through Bradley-Terry."""
    played = games(verdicts)
    groups = components(played)

    def compare(a: Response, b: Response) -> tuple[float, float] | None:
        direct = [g.score if g.first == a.id else 1 - g.score for g in played if {g.first, g.second} == {a.id, b.id}]
        if direct:
            p = sum(direct) / len(direct)
            return log_odds(p), p
        if not any({a.id, b.id} <= group for group in groups):
            return None
        margin = round(fitted.difference(a.id, b.id)[0], 6)  # rounding of the fit must not break a tie
        return margin, 1 / (1 + math.exp(-margin))

    return compare


def log_odds(p: float) -> float:
    """log p / (1 - p), finite for certain answers: ``CERTAIN`` is as sure as a judge can be."""
    p = min(max(p, CERTAIN), 1 - CERTAIN)
    return math.log(p) - math.log1p(-p)


def _handicaps(judged: JudgedGroup, rules: PairingRules) -> dict[str, float]:
    """What is taken off each candidate's score for its length and for being cut off, in the judge's units."""
    cut = rules.missing_eos_penalty if rules.missing_eos == "penalise" else 0.0
    return {
        c.id: rules.length_penalty * len(c.token_ids) + (0.0 if c.finished else cut) for c in judged.group.candidates
    }


def _penalised(judged: JudgedGroup, rules: PairingRules) -> list[Judgement]:
    """Judgements with the verdicts' log-odds moved by the two candidates' handicaps."""
    handicaps = _handicaps(judged, rules)

    def moved(judgement: Judgement) -> Judgement:
        p = share(judgement) if isinstance(judgement, Verdict) else None
        if not isinstance(judgement, Verdict) or p is None:
            return judgement
        off = handicaps.get(judgement.first_id, 0.0) - handicaps.get(judgement.second_id, 0.0)
        if off == 0:
            return judgement
        p = 1 / (1 + math.exp(off - log_odds(p)))
        return replace(judgement, probability=p, outcome=Outcome.FIRST if p > 0.5 else Outcome.SECOND)

    return [moved(j) for j in judged.judgements]


# -- what is made of it ----------------------------------------------------------------------------------------------


def _decide(
    judged: JudgedGroup, field: _Field, scores: Mapping[str, float], compare: Compare, rules: PairingRules
) -> Made:
    """Items of scored candidates."""
    field = field.scored(scores)
    if not _enough(field.candidates, rules):
        return Made((), _why_unjudged(judged))
    if rules.strategy == "labels":
        return _labels(judged.group.prompt, field, scores, rules)
    if not field.may_win:
        return Made((), Fate.UNFINISHED)
    return _pairs(judged, field, select(field.may_win, field.candidates, scores, rules), compare, rules)


def _pairs(judged: JudgedGroup, field: _Field, twos: Sequence[Two], compare: Compare, rules: PairingRules) -> Made:
    """The pairs whose margin is large enough (and ties, if they are kept), up to the cap."""
    prompt, items = judged.group.prompt, list[Item]()
    fates = set[Fate]()
    for chosen, rejected in twos:
        known = compare(chosen, rejected)
        if known is None:
            fates.add(_why_unjudged(judged))
        elif known[0] > rules.min_margin:
            items.append(_pair(prompt, chosen, rejected, *known, tied=False))
        elif known[0] < -rules.min_margin and rejected not in field.may_win:
            fates.add(Fate.UNFINISHED)  # the better one was cut off and may not be chosen
        elif rules.ties == "keep" and abs(known[0]) <= rules.min_margin:
            items.append(_pair(prompt, chosen, rejected, abs(known[0]), 0.5, tied=True))
        else:
            fates.add(Fate.TIED)
    if items:
        return Made(tuple(items[: rules.max_pairs]), Fate.TRAINED)
    return Made((), next((f for f in (Fate.TIED, Fate.UNFINISHED) if f in fates), _why_unjudged(judged)))


def _spin(prompt: Prompt, field: _Field, rules: PairingRules) -> Made:
    """The data's response over a rival's: as certain as a label, margin 1, since nobody scored them."""
    data, rivals = sides(field.candidates, "spin") or ([], [])
    chosen, rejected = spin_pair(data, rivals, rules.seed)
    return Made((_pair(prompt, chosen, rejected, 1.0, 1.0, tied=False),), Fate.TRAINED)


def _pair(
    prompt: Prompt, chosen: Response, rejected: Response, margin: float, probability: float, *, tied: bool
) -> Pair:
    return Pair(content_id("pair", chosen.id, rejected.id), prompt, chosen, rejected, margin, probability, tied)


def _labels(prompt: Prompt, field: _Field, scores: Mapping[str, float], rules: PairingRules) -> Made:
    """Desirable above the threshold, undesirable below; within the neutral band nothing is said of a candidate."""
    at = rules.threshold
    threshold = math.fsum(scores[c.id] for c in field.candidates) / len(field.candidates) if at == "mean" else at
    items = []
    for c in field.candidates:
        distance = scores[c.id] - threshold
        desirable = distance > 0
        if abs(distance) > max(rules.neutral_band, NEGLIGIBLE) and (not desirable or c in field.may_win):
            items.append(Labelled(content_id("labelled", c.id, desirable), prompt, c, desirable))
    return Made(tuple(items), Fate.TRAINED if items else Fate.TIED)
