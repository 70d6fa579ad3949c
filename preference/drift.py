"""What changes when candidates are judged anew: verdicts, pairs, fates, and the prompts that they belong to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from preference.agreement import Share, accuracy_without_ties, cohens_kappa
from preference.pairing import PairingRules, make_items, ratings
from preference.tournament import share
from preference.types import CandidateGroup, Fate, Item, JudgedGroup, JudgeFailure, Judgement, Pair, Verdict
from preference.winrate import WinRate, win_rate

Two = tuple[str, str]
Opinions = dict[Two, float | None]
"""P(the first is better) of two candidates by their sorted ids; 1/2 is a tie, None: a judge failed or abstained."""


@dataclass(frozen=True, slots=True)
class Rejudged:
    """One prompt's candidates as two judges saw them."""

    place: str
    """Where it stands in its run, for people to read."""
    old: JudgedGroup
    new: JudgedGroup


@dataclass(frozen=True, slots=True)
class VerdictDrift:
    """Of the twos of candidates that the old judge had something to say on."""

    compared: int
    """Both gave a verdict, a tie being one. ``same`` to ``untied`` add up to it."""
    same: int
    flipped: int
    became_ties: int
    untied: int
    lost: int
    """There was a verdict, and the new judge failed or abstained."""
    gained: int
    """The old judge had failed or abstained, and there is a verdict now."""
    agreement: Share
    """How often both name the same side, of those on which neither says tie."""
    kappa: float
    """Cohen's, over first, second and tie."""


@dataclass(frozen=True, slots=True)
class PairDrift:
    """Of the items (pairs, or labelled responses) that the run's rules make of either judgement."""

    old: int
    new: int
    kept: int
    """``kept``, ``flipped``, ``became_ties`` and ``dropped`` add up to ``old``."""
    flipped: int
    """The chosen one is rejected now, the desirable one undesirable."""
    became_ties: int
    dropped: int
    added: int


@dataclass(frozen=True, slots=True)
class PromptDrift:
    prompt_id: str
    place: str
    change: float
    """Mean over its matches of how far P(first is better) moved, in [0, 1]."""
    old: Fate
    new: Fate


@dataclass(frozen=True, slots=True)
class Drift:
    prompts: int
    verdicts: VerdictDrift
    pairs: PairDrift
    fates_old: dict[Fate, int]
    fates_new: dict[Fate, int]
    changed: tuple[PromptDrift, ...]
    """The prompts that changed most, first; those that did not change are left out."""


def opinions(judged: JudgedGroup) -> Opinions:
    """What a group's judgements say of every two candidates that they say anything of; ratings compare all of them."""
    rated = ratings(judged)
    found: Opinions = {}
    for one, two in combinations(sorted(rated), 2):
        found[one, two] = 0.5 if rated[one] == rated[two] else float(rated[one] > rated[two])
    for judgement in judged.judgements:
        if isinstance(judgement, Verdict):
            p = share(judgement)
            first, second = judgement.first_id, judgement.second_id
            found[_sorted(first, second)] = p if p is None or first < second else 1 - p
        elif isinstance(judgement, JudgeFailure):
            for match in _failed(judgement, judged.group):
                found.setdefault(match, None)
    return found


def _failed(failure: JudgeFailure, group: CandidateGroup) -> list[Two]:
    """The twos that a failure leaves without an opinion: the match itself, or all of those that lack a rating."""
    ids = sorted(failure.candidate_ids)
    if len(ids) == 2:
        return [(ids[0], ids[1])]
    return [two for two in combinations(sorted(c.id for c in group.candidates), 2) if set(two) & set(ids)]


def drift(groups: Sequence[Rejudged], rules: PairingRules, most: int = 10) -> Drift:
    """Compare two judgements of the same candidates; ``most``: how many of the prompts that changed most are named."""
    before: list[float | None] = []
    after: list[float | None] = []
    pairs: Counter[str] = Counter()
    fates: tuple[Counter[Fate], Counter[Fate]] = (Counter(), Counter())
    changed: list[PromptDrift] = []
    for group in groups:
        old, new = opinions(group.old), opinions(group.new)
        before += [p for two, p in old.items() if two in new]
        after += [new[two] for two in old if two in new]
        made = [make_items(judged, rules) for judged in (group.old, group.new)]
        for counter, m in zip(fates, made, strict=True):
            counter[m.fate] += 1
        pairs.update(_moved(made[0].items, made[1].items, made[1].fate))
        if change := _change(old, new):
            prompt = group.old.group.prompt.id
            changed.append(PromptDrift(prompt, group.place, change, made[0].fate, made[1].fate))
    changed.sort(key=lambda c: (-c.change, c.place, c.prompt_id))
    names = ("old", "new", "kept", "flipped", "became_ties", "dropped", "added")
    return Drift(
        len(groups),
        _verdicts(before, after),
        PairDrift(**{name: pairs[name] for name in names}),
        dict(fates[0]),
        dict(fates[1]),
        tuple(changed[:most]),
    )


def duel(judged: Iterable[JudgedGroup]) -> WinRate | None:
    """Win rate of the first candidate over the second in groups of two, ties half; None where nobody judged any.

    Two candidates with the same tokens are a tie that nobody has to judge.
    """
    won = [p for group in judged if (p := _first_won(group)) is not None]
    sides = [0.5 if p == 0.5 else float(p > 0.5) for p in won]
    return win_rate(sides, [1 - s for s in sides]) if sides else None


def _first_won(judged: JudgedGroup) -> float | None:
    first, second = judged.group.candidates
    if first.token_ids == second.token_ids:
        return 0.5
    p = opinions(judged).get(_sorted(first.id, second.id))
    return p if p is None or first.id < second.id else 1 - p


def only(judgements: Iterable[Judgement], group: CandidateGroup) -> JudgedGroup:
    """``group`` with those of the judgements that are about its candidates alone."""
    ids = {c.id for c in group.candidates}
    return JudgedGroup(group, tuple(j for j in judgements if set(subjects(j)) <= ids))


def subjects(judgement: Judgement) -> tuple[str, ...]:
    """Ids of the candidates that a judgement is about."""
    if isinstance(judgement, Verdict):
        return judgement.first_id, judgement.second_id
    return judgement.candidate_ids if isinstance(judgement, JudgeFailure) else (judgement.candidate_id,)


def _verdicts(before: Sequence[float | None], after: Sequence[float | None]) -> VerdictDrift:
    both = [(_side(a), _side(b)) for a, b in zip(before, after, strict=True) if a is not None and b is not None]
    old, new = [a for a, _ in both], [b for _, b in both]
    return VerdictDrift(
        compared=len(both),
        same=sum(a == b for a, b in both),
        flipped=sum(a + b == 1 and a != b for a, b in both),
        became_ties=sum(a != 0.5 and b == 0.5 for a, b in both),
        untied=sum(a == 0.5 and b != 0.5 for a, b in both),
        lost=sum(a is not None and b is None for a, b in zip(before, after, strict=True)),
        gained=sum(a is None and b is not None for a, b in zip(before, after, strict=True)),
        agreement=accuracy_without_ties(new, old),
        kappa=cohens_kappa([int(2 * a) for a in old], [int(2 * b) for b in new]),
    )


def _side(p: float) -> float:
    return 0.5 if p == 0.5 else float(p > 0.5)


def _moved(old: Sequence[Item], new: Sequence[Item], fate: Fate) -> Counter[str]:
    """Counts of ``PairDrift`` for one prompt, whose new fate is ``fate``."""
    now = {_said(item) for item in new}
    counts = Counter(old=len(old), new=len(new))
    answered: set[tuple[str, ...]] = set()
    for item in old:
        said = _said(item)
        tied = _tie(item)
        if said in now:
            kind, answer = "kept", said
        elif (opposite := _opposite(item)) in now:
            kind, answer = "flipped", opposite
        elif tied in now or (fate is Fate.TIED and not new):
            kind, answer = "became_ties", tied
        else:
            kind, answer = "dropped", said
        counts[kind] += 1
        answered.add(answer)
    counts["added"] = len(now - answered)
    return counts


def _said(item: Item) -> tuple[str, ...]:
    if not isinstance(item, Pair):
        return item.response.id, str(item.desirable)
    return _tie(item) if item.tied else (item.chosen.id, item.rejected.id)


def _opposite(item: Item) -> tuple[str, ...]:
    if not isinstance(item, Pair):
        return item.response.id, str(not item.desirable)
    return item.rejected.id, item.chosen.id


def _tie(item: Item) -> tuple[str, ...]:
    return ("tie", *_sorted(item.chosen.id, item.rejected.id)) if isinstance(item, Pair) else ("tie", item.response.id)


def _change(old: Opinions, new: Opinions) -> float:
    moved = [abs(p - q) for two, p in old.items() if p is not None and (q := new.get(two)) is not None]
    return sum(moved) / len(moved) if moved else 0.0


def _sorted(one: str, two: str) -> Two:
    return (one, two) if one < two else (two, one)
