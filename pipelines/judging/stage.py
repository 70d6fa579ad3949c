"""The judging stage: whatever judge the configuration names, asked about a prompt as soon as it is sampled.

    judge(step, group) ──> judged group                  rated, or compared round by round until its pair is decided
                      └──> None: people have been asked ──> settle(step) ──> judged groups, of this step and earlier

What people have not answered yet stays open across steps and attempts (``restore``); a late answer feeds a later batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from actors.judges.protocol import Arbiter, Rater
from pipelines.annotate.judge import HumanAnswer, HumanPool
from preference.pairing import PairingRules, next_matches, ratings
from preference.types import (
    CandidateGroup,
    JudgedGroup,
    JudgeFailure,
    Judgement,
    Match,
    Outcome,
    Prompt,
    Verdict,
    Written,
    content_id,
    ids_of,
)

Encode = Callable[[Prompt, str], tuple[int, ...]]
"""(prompt, response) -> the response's token ids, the end of the turn included; raises ValueError where it cannot."""


@dataclass(slots=True)
class _Open:
    """A prompt that people have been asked about."""

    step: int
    judged: JudgedGroup
    asked: set[tuple[str, str]] = field(default_factory=set)
    """Matches that have been put to the judge: its first opinion of them is not bought again."""


class JudgeStage:
    """Asks a judge about groups of candidates."""

    def __init__(
        self,
        judge: Rater | Arbiter,
        people: HumanPool | None,
        rules: PairingRules,
        encode: Encode,
        budget: int,
        say: Callable[[str], None],
        *,
        labels: bool = False,
        heldout: Rater | Arbiter | None = None,
    ) -> None:
        """``people`` are those that ``judge`` hands matches to, if it does; with ``labels`` they are asked about single
        responses instead. ``budget``: most tokens of a prompt and its two responses. ``say`` tells what went wrong.
        ``heldout`` asks the same judge about held-out answers, remembers what it said, and closes it.
        """
        self.name = judge.name
        self._judge, self._people, self._rules = judge, people, rules
        self._heldout = heldout or judge
        self._encode, self._budget, self._say, self._labels = encode, budget, say, labels
        self._open: dict[str, _Open] = {}  # by the id of every candidate
        self._taken: dict[int, list[str]] = {}  # answers of people that a step has used

    async def ready(self) -> None:
        await self._judge.ready()

    def close(self) -> None:
        self._heldout.close()

    async def judge(self, step: int, group: CandidateGroup) -> JudgedGroup | None:
        """The judged group, or None where people have been asked and ``settle`` will tell."""
        if self._rules.strategy == "spin":  # the data's response is the better one by definition
            return JudgedGroup(group, ())
        if not isinstance(self._judge, Arbiter):
            return JudgedGroup(group, tuple(await self._judge.rate([group])))
        entry = self._enter(step, JudgedGroup(group, ()))
        if self._labels:
            assert self._people is not None
            await self._people.submit_responses(step, [group])
            return None
        return await self._advance(entry)

    async def _advance(self, entry: _Open) -> JudgedGroup | None:
        """Ask round after round until the pair is decided, or people have to be waited for."""
        assert isinstance(self._judge, Arbiter)
        while wanted := next_matches(entry.judged, self._rules):
            matches = [m for m in wanted if m.ids not in entry.asked]  # the others are with people already
            if not matches:
                return None
            entry.asked |= {m.ids for m in matches}
            rulings = await self._judge.rule(entry.step, matches)
            stands = tuple(r.stands for r in rulings if r.stands is not None)
            overruled = tuple(o for r in rulings for o in r.overruled)
            known = entry.judged  # read anew: people may have answered meanwhile
            entry.judged = replace(
                known, judgements=(*known.judgements, *stands), overruled=(*known.overruled, *overruled)
            )
            if len(stands) < len(wanted):
                return None
        self._forget(entry.judged)
        return entry.judged

    # -- people ----------------------------------------------------------------------------------------------------

    def restore(self, waiting: Iterable[tuple[int, JudgedGroup]]) -> None:
        """Take up what an earlier attempt had asked people about, with the step that asked."""
        for step, judged in waiting:
            entry = self._enter(step, judged)
            entry.asked |= {(j.first_id, j.second_id) for j in judged.overruled if isinstance(j, Verdict)}

    async def settle(self, step: int) -> list[JudgedGroup]:
        """Wait for people as the configuration says; what they have decided, in the order in which it was asked."""
        if self._people is None:
            return []
        settled: list[JudgedGroup] = []
        used: set[str] = set()
        while True:
            answers = [a for a in await self._people.collect(step) if a.id not in used]
            used |= {a.id for a in answers}
            touched: dict[str, _Open] = {}
            for answer in answers:
                # One to a group that is closed has been used by a step whose process died before it could say so.
                self._taken.setdefault(step, []).append(answer.id)
                if (found := self._apply(answer)) is not None:
                    touched[found.judged.group.candidates[0].id] = found
            asked_more = False
            for entry in touched.values():
                done = await self._finish(entry)
                asked_more |= done is None and not self._labels
                settled += [done] if done is not None else []
            if not asked_more:
                return settled

    async def consumed(self, step: int) -> None:
        """The ledger has what ``settle(step)`` returned."""
        if self._people is not None:
            await self._people.consumed(step, self._taken.pop(step, []))

    def waiting(self, step: int) -> list[JudgedGroup]:
        """Groups of ``step`` that people have not decided yet, with what is known of them."""
        found = {id(e): e.judged for e in self._open.values() if e.step == step}
        return list(found.values())

    def _enter(self, step: int, judged: JudgedGroup) -> _Open:
        entry = _Open(step, judged)
        for candidate in judged.group.candidates:
            self._open[candidate.id] = entry
        return entry

    def _forget(self, judged: JudgedGroup) -> None:
        for candidate in judged.group.candidates:
            self._open.pop(candidate.id, None)

    def _apply(self, answer: HumanAnswer) -> _Open | None:
        """Put an answer to its group; None where the group is no longer open or has the answer already."""
        judgement = answer.judgement
        entry = self._open.get(ids_of(judgement)[0])
        if entry is None or judgement in entry.judged.judgements:
            return None
        entry.judged = replace(entry.judged, judgements=(*entry.judged.judgements, judgement))
        for text in answer.written:
            self._add_written(entry, text, judgement)
        return entry

    def _add_written(self, entry: _Open, text: str, judgement: Judgement) -> None:
        """A better response that somebody wrote beats every candidate of the prompt."""
        group = entry.judged.group
        try:
            ids = self._encode(group.prompt, text)
            total = len(group.prompt.token_ids) + len(ids) + max(len(c.token_ids) for c in group.candidates)
            if total > self._budget:
                raise ValueError(f"with prompt and rejected response it has {total} tokens, more than {self._budget}")
        except ValueError as error:
            self._say(f"a written answer to prompt {group.prompt.id} cannot be trained on: {error}")
            return
        name = content_id("written", group.prompt.id, ids)
        if any(c.id == name for c in group.candidates):
            return
        written = Written(name, group.prompt.id, ids, text, "human")
        wins = tuple(Verdict(name, c.id, Outcome.FIRST, 1.0, judgement.judge) for c in group.candidates)
        entry.judged = replace(
            entry.judged,
            group=replace(group, candidates=(*group.candidates, written)),
            judgements=(*entry.judged.judgements, *wins),
        )
        self._open[name] = entry

    async def _finish(self, entry: _Open) -> JudgedGroup | None:
        """The group if nothing is open any more; else what is still to be asked has been."""
        if not self._labels:
            return await self._advance(entry)
        judged = entry.judged
        known = {i for j in judged.judgements for i in ids_of(j)}
        if any(c.id not in known for c in judged.group.sampled):
            return None
        self._forget(judged)
        return judged

    # -- held-out answers ------------------------------------------------------------------------------------------

    async def score(
        self, groups: Sequence[CandidateGroup], against: Sequence[CandidateGroup] | None = None
    ) -> list[float]:
        """A score of the one answer in each group; nan where the judge failed.

        A judge that rates gives its ratings. One that compares gives P(the answer is better than that ``against`` it),
        a tie being 1/2, and 1/2 where there is nothing to compare with.
        """
        if not isinstance(self._heldout, Arbiter):
            found = await asyncio.gather(*(self._heldout.rate([g]) for g in groups))
            scores = [ratings(JudgedGroup(g, tuple(r))) for g, r in zip(groups, found, strict=True)]
            return [s.get(g.candidates[0].id, float("nan")) for g, s in zip(groups, scores, strict=True)]
        if against is None:
            return [0.5] * len(groups)
        matches = [Match(g.prompt, g.candidates[0], a.candidates[0]) for g, a in zip(groups, against, strict=True)]
        rulings = await self._heldout.rule(0, matches)
        return [_won(r.stands) for r in rulings]


def _won(opinion: Verdict | JudgeFailure | None) -> float:
    if not isinstance(opinion, Verdict):
        return float("nan")
    return 0.5 if opinion.outcome is Outcome.TIE else opinion.probability
