"""Sampled prompts: one fate each, pairs that follow from the judgements, nothing bought twice, everything scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipelines.ledger.audit.findings import Findings
from pipelines.ledger.audit.journals import Journals, JudgedLine, Line, Sampled, ScoreLine
from pipelines.ledger.events import Event, PreparedStep
from preference.pairing import PairingRules, make_items
from preference.types import (
    CandidateGroup,
    Fate,
    Item,
    JudgedGroup,
    JudgeFailure,
    Judgement,
    Message,
    Prompt,
    Response,
    ids_of,
)


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt's candidates as a step left them."""

    step: int
    name: str
    waiting: bool
    judged: JudgedGroup
    place: str


def groups_of(journals: Journals) -> list[Group]:
    """As ``judged.read_groups`` has them, with the place of the last judgements."""
    responses: dict[tuple[int, str], dict[str, Response]] = {}
    for line in journals.candidates:
        responses.setdefault((line.record.step, line.record.group), {})[line.record.response.id] = line.record.response
    found: dict[tuple[int, str], Group] = {}
    for judged in journals.judgements:
        r = judged.record
        candidates = tuple(responses.get((r.step, r.group), {}).values())
        if candidates:
            # Nothing that makes pairs depends on a prompt's text, which the ledger does not hold.
            prompt = Prompt(r.prompt_id, (Message("user", r.prompt_id),), ())
            group = JudgedGroup(CandidateGroup(prompt, candidates), r.judgements, r.overruled)
            found[r.step, r.group] = Group(r.step, r.group, r.state == "waiting", group, judged.place)
    return list(found.values())


def check_candidates(lines: Sequence[Line[Sampled]], judged: Sequence[Line[JudgedLine]], found: Findings) -> None:
    """A candidate belongs to one group and one prompt, and whatever was judged was sampled."""
    home: dict[str, Line[Sampled]] = {}
    again = 0
    for line in lines:
        first = home.setdefault(line.record.response.id, line)
        if first.record.group != line.record.group:
            found.breach(line.place, f"candidate {line.record.response.id} is also in another group: {first.place}")
        again += first.record.response.token_ids != line.record.response.token_ids
    if again:
        found.notes.append(f"{again} candidates were sampled again: a process died before they were judged")
    known = {(line.record.step, line.record.group) for line in lines}
    for entry in judged:
        if (entry.record.step, entry.record.group) not in known:
            found.breach(entry.place, f"group {entry.record.group} of step {entry.record.step} has no candidates")
            continue
        for judgement in entry.record.judgements:
            if missing := [i for i in ids_of(judgement) if i not in home]:
                found.breach(entry.place, f"a judgement of {missing[0]}, which is no candidate")


def check_purchases(lines: Sequence[Line[JudgedLine]], found: Findings) -> None:
    """No judge was asked twice about the same: a judgement that is journaled is carried along, not bought again."""
    bought: dict[tuple[str, str, frozenset[str]], tuple[Judgement, str]] = {}
    for line in lines:
        record = line.record
        for judgement in (*record.judgements, *record.overruled):
            if isinstance(judgement, JudgeFailure):
                continue  # to be asked again
            key = judgement.judge.name, judgement.judge.definition_hash, frozenset(ids_of(judgement))
            before, place = bought.setdefault(key, (judgement, line.place))
            if before != judgement:
                about = " against ".join(ids_of(judgement))
                found.breach(line.place, f"judge {key[0]} was asked again about {about}: it had answered in {place}")
    found.counted["judgements bought"] = len(bought)


def check_fates(
    groups: Sequence[Group],
    steps: Mapping[int, Line[Event]],
    prompts_per_step: int,
    rules: PairingRules,
    found: Findings,
) -> dict[int, dict[str, Item]]:
    """Every prompt of every complete step has exactly one fate, and the step's items follow from its judgements.

    Returns the items by step and id.
    """
    by_step = _by_step(groups, steps, found)
    _check_decided_once(by_step, found)
    seen: set[str] = set()
    items: dict[int, dict[str, Item]] = {}
    for step, line in sorted(steps.items()):
        assert isinstance(line.record, PreparedStep)
        own = by_step[step]
        new = {g.name for g in own} - seen
        seen |= new
        if len(new) != prompts_per_step:
            found.breach(
                line.place,
                f"step {step} has candidates of {len(new)} prompts, and sampling.prompts_per_step = {prompts_per_step}",
            )
        made = [make_items(g.judged, rules) for g in own if not g.waiting]
        fates = Counter(m.fate for m in made)
        fates[Fate.WAITING] += sum(g.waiting for g in own)
        fates[Fate.STALE] += len(line.record.stale)
        items[step] = {item.id: item for m in made for item in m.items}
        _check_step(step, line.place, line.record, +fates, items[step], found)
        found.counted["fates"] += sum(fates.values())
    return items


def _by_step(groups: Sequence[Group], steps: Mapping[int, Line[Event]], found: Findings) -> dict[int, list[Group]]:
    """What every complete step was made of, and what it had asked people about in vain."""
    by_step: dict[int, list[Group]] = {step: [] for step in steps}
    decided = {g.name: g for g in groups if not g.waiting}
    for group in groups:
        if group.step in by_step:
            event = steps[group.step].record
            assert isinstance(event, PreparedStep)
            if group.waiting or event.groups is None:
                by_step[group.step].append(group)
    for step, line in steps.items():
        assert isinstance(line.record, PreparedStep)
        for name in line.record.groups or ():
            if name in decided:
                by_step[step].append(decided[name])
            else:
                found.breach(line.place, f"step {step} is made of group {name}, which nobody has judged")
    return by_step


_LATER = (Fate.TOO_LONG,)  # what the loop decides on items that pairing had made


def _check_step(
    step: int, place: str, event: PreparedStep, fates: Counter[Fate], made: Mapping[str, Item], found: Findings
) -> None:
    recorded = Counter(event.fates or {})
    dropped = sum(recorded[f] for f in _LATER)
    if event.fates is not None:
        as_paired = Counter({f: n for f, n in recorded.items() if f not in _LATER})
        as_paired[Fate.TRAINED] += dropped
        if +as_paired != fates:
            found.breach(place, f"step {step} records the fates {_told(recorded)}; its judgements give {_told(fates)}")
    missing = sorted(set(event.pairs) - made.keys())
    more = sorted(made.keys() - set(event.pairs))
    if missing:
        found.breach(place, f"{len(missing)} items of step {step} do not follow from its judgements: {missing[0]} ...")
    if more and not dropped:
        found.breach(
            place, f"the judgements of step {step} give {len(more)} items it was not trained on: {more[0]} ..."
        )


def _told(fates: Mapping[Fate, int]) -> str:
    return ", ".join(f"{n} {f.value}" for f, n in sorted(fates.items()) if n) or "none"


def _check_decided_once(by_step: Mapping[int, Sequence[Group]], found: Findings) -> None:
    decided: dict[str, tuple[int, Group]] = {}
    for step, groups in sorted(by_step.items()):
        for group in groups:
            if group.waiting:
                continue
            before, first = decided.setdefault(group.name, (step, group))
            if before != step or first is not group:
                found.breach(
                    group.place,
                    f"prompt {group.judged.group.prompt.id} is decided in step {step}, and was in step {before} "
                    f"({first.place}): it has two fates",
                )


def check_scores(
    lines: Sequence[Line[ScoreLine]],
    items: Iterable[tuple[str, str, tuple[int, ...] | None]],
    reference: str | None,
    found: Findings,
) -> None:
    """Every item in ``items`` (place, id, its responses' lengths if they are known) was scored, once a reference.

    ``reference``: the one that has to have done it; None: any.
    """
    known: dict[tuple[str, str], str] = {}
    shapes: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {}
    for line in lines:
        r = line.record
        if (before := known.setdefault((r.reference, r.item), line.place)) != line.place:
            found.breach(line.place, f"reference {r.reference} scored item {r.item} again: it had in {before}")
        shapes.setdefault(r.item, []).append((r.reference, line.place, tuple(map(len, r.scores))))
    for place, item, lengths in items:
        scored = [s for s in shapes.get(item, ()) if reference in (None, s[0])]
        if not scored:
            found.breach(
                place, f"item {item} was trained without log-probs of the reference {reference or ''}".rstrip()
            )
        for _, where, shape in scored:
            if lengths is not None and shape != lengths:
                found.breach(where, f"item {item} has responses of {lengths} tokens, and log-probs of {shape}")
        found.counted["items scored"] += bool(scored)


def lengths_of(item: Item) -> tuple[int, ...]:
    return tuple(len(r.token_ids) for r in item.responses)


def sampled_items(
    held: Mapping[int, Line[Event]], made: Mapping[int, Mapping[str, Item]]
) -> Iterator[tuple[str, str, tuple[int, ...] | None]]:
    """What ``check_scores`` wants to know of a lineage's items."""
    for step, line in held.items():
        assert isinstance(line.record, PreparedStep)
        for name in line.record.pairs:
            item = made.get(step, {}).get(name)
            yield line.place, name, None if item is None else lengths_of(item)
