"""Judges put together: raters as comparers, panels that vote, and judges that hand on what they are unsure of."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from actors.judges.protocol import Arbiter, Comparer, Crowd, Rater, Ruling
from preference.panel import EscalationRules, Opinion, PanelRules, audited, by_ratings, escalates, panel
from preference.types import CandidateGroup, JudgeFailure, JudgeInfo, Match, Rating, Response, content_id


class Comparing(Arbiter):
    """A pairwise judge by itself."""

    def __init__(self, judge: Comparer) -> None:
        super().__init__(judge.name, judge)
        self._judge = judge

    async def rule(self, step: int, matches: Sequence[Match]) -> list[Ruling]:
        return [Ruling(opinion) for opinion in await self._judge.compare(matches)]


class Rated(Arbiter):
    """A pointwise judge asked to compare: every response is rated once, whatever number of matches it plays.

    What a rating cost is in the first verdict that rests on it, so that costs add up.
    """

    def __init__(self, judge: Rater, scale: float) -> None:
        super().__init__(judge.name, judge)
        self._judge, self._scale = judge, scale
        self._rated: dict[str, asyncio.Task[Rating | JudgeFailure]] = {}

    async def rule(self, step: int, matches: Sequence[Match]) -> list[Ruling]:
        return list(await asyncio.gather(*(self._rule(match) for match in matches)))

    async def _rule(self, match: Match) -> Ruling:
        both = match.first, match.second
        fresh = [response.id not in self._rated for response in both]
        tasks = [self._rating(match, response) for response in both]
        rated = await asyncio.gather(*tasks)
        first, second = (r if new else replace(r, cost=0.0) for r, new in zip(rated, fresh, strict=True))
        return Ruling(by_ratings(match, first, second, self._scale))

    def _rating(self, match: Match, response: Response) -> asyncio.Task[Rating | JudgeFailure]:
        if response.id not in self._rated:
            if len(self._rated) >= _REMEMBERED:
                self._rated.pop(next(iter(self._rated)))
            self._rated[response.id] = asyncio.ensure_future(self._rate(match, response))
        return self._rated[response.id]

    async def _rate(self, match: Match, response: Response) -> Rating | JudgeFailure:
        (rating,) = await self._judge.rate([CandidateGroup(match.prompt, (response,))])
        return rating


_REMEMBERED = 4096  # ratings; a prompt's matches follow one another closely


class People(Arbiter):
    """People by themselves: every match goes to them."""

    def __init__(self, pool: Crowd) -> None:
        super().__init__(pool.name, pool)
        self.pool = pool

    async def rule(self, step: int, matches: Sequence[Match]) -> list[Ruling]:
        if matches:
            await self.pool.submit(step, matches)
        return [Ruling(None)] * len(matches)


class Panel(Arbiter):
    def __init__(self, members: Sequence[Arbiter], rules: PanelRules) -> None:
        super().__init__(" + ".join(m.name for m in members), *members)
        self._members, self._rules = tuple(members), rules

    async def rule(self, step: int, matches: Sequence[Match]) -> list[Ruling]:
        votes = await asyncio.gather(*(member.rule(step, matches) for member in self._members))
        return [Ruling(self._vote(m, [r.stands for r in rulings])) for m, *rulings in zip(matches, *votes, strict=True)]

    def _vote(self, match: Match, stands: Sequence[Opinion | None]) -> Opinion:
        opinions = [o for o in stands if o is not None]  # the configuration allows no people in a panel
        rules = self._rules
        definition = content_id("panel", *(o.judge.definition_hash for o in opinions), *rules.weights, rules.tie_band)
        return panel(match, opinions, rules, JudgeInfo(self.name, definition))


class Escalation(Arbiter):
    def __init__(self, first: Arbiter, then: Arbiter, rules: EscalationRules) -> None:
        super().__init__(f"{first.name}, then {then.name}", first, then)
        self._first, self.then, self._rules = first, then, rules

    async def rule(self, step: int, matches: Sequence[Match]) -> list[Ruling]:
        rulings = await self._first.rule(step, matches)
        handed_on = [i for i, r in enumerate(rulings) if self._hands_on(matches[i], r.stands)]
        again = await self.then.rule(step, [matches[i] for i in handed_on])
        for i, ruling in zip(handed_on, again, strict=True):
            said = rulings[i].stands
            assert said is not None
            if isinstance(ruling.stands, JudgeFailure) and not escalates(said, self._rules):
                rulings[i] = Ruling(said, (*rulings[i].overruled, *ruling.overruled, ruling.stands))  # a failed audit
            else:
                rulings[i] = Ruling(ruling.stands, (*rulings[i].overruled, said, *ruling.overruled))
        return rulings

    def _hands_on(self, match: Match, opinion: Opinion | None) -> bool:
        assert opinion is not None  # the configuration allows no people before others
        return escalates(opinion, self._rules) or audited(match, self._rules)
