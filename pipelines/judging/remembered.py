"""Opinions that are not bought again: a journal in front of a judge.

Each line keeps what was said of a match, or of a group of candidates, under the content of what was asked: prompt,
texts and tokens. An interrupted comparison finds there what it has paid for. What failed is tried again.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter

from actors.judges.identity import model_identity
from actors.judges.protocol import Arbiter, Rater, Ruling
from configs.judges import ImplicitJudge, Judge, LlmJudge, RewardModelJudge, RuleJudge, singles
from configs.judging import JudgeSection
from configs.loading import scientific
from pipelines.ledger.journal import Journal, LedgerError
from preference.panel import Opinion
from preference.types import (
    CandidateGroup,
    JudgeFailure,
    Judgement,
    Match,
    Outcome,
    Prompt,
    Rating,
    Response,
    content_id,
)

_opinions: TypeAdapter[tuple[Opinion, ...]] = TypeAdapter(tuple[Opinion, ...])
_ratings: TypeAdapter[tuple[Rating | JudgeFailure, ...]] = TypeAdapter(tuple[Rating | JudgeFailure, ...])
_judgements: TypeAdapter[tuple[Judgement, ...]] = TypeAdapter(tuple[Judgement, ...])


class Memory:
    """What one judge has said, by what it was asked; ``close`` it."""

    def __init__(self, path: Path) -> None:
        """Raises LedgerError where another process has it open, or where it is damaged."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path.with_name(path.name + ".lock"))
        self._journal, self._open = Journal(path), True
        records = list(self._journal)
        self._known: dict[str, dict[str, Any]] = {r["key"]: r for r in records if not _failed(r)}
        self.costs = costs(records)
        """What it cost that is in here from the start, by the definition of the judge; failures are paid for, too."""
        self.found = 0
        """Questions that were answered from here."""
        self.asked = 0
        """Questions that had to be asked."""

    def recall(self, key: str) -> dict[str, Any] | None:
        known = self._known.get(key)
        if known is None:
            self.asked += 1
        else:
            self.found += 1
        return known

    def keep(self, key: str, judgements: Sequence[Judgement], overruled: Sequence[Judgement] = ()) -> None:
        """A failure is kept for what it cost alone: that is asked again. What comes after ``close`` is not kept."""
        if not self._open:  # others were still being asked as one raised
            return
        record = {
            "key": key,
            "judgements": _judgements.dump_python(tuple(judgements), mode="json"),
            "overruled": _judgements.dump_python(tuple(overruled), mode="json"),
        }
        self._journal.append(record)
        self._journal.flush()
        if not _failed(record):
            self._known[key] = record

    def close(self) -> None:
        if self._open:
            self._open = False
            self._journal.close()
            self._lock.close()


class RememberingArbiter(Arbiter):
    """Asks ``judge`` only what it has not said before; closes ``memory`` with it."""

    def __init__(self, judge: Arbiter, memory: Memory) -> None:
        super().__init__(judge.name, judge)
        self._judge, self.memory = judge, memory

    async def rule(self, step: int, matches: Sequence[Match]) -> list[Ruling]:
        return list(await asyncio.gather(*(self._rule(step, match) for match in matches)))

    async def _rule(self, step: int, match: Match) -> Ruling:
        key = question_key(match.prompt, (match.first, match.second))
        if (known := self.memory.recall(key)) is not None:
            [stands] = _opinions.validate_python(known["judgements"])
            return Ruling(stands, _opinions.validate_python(known["overruled"]))
        [ruling] = await self._judge.rule(step, [match])
        if ruling.stands is not None:
            self.memory.keep(key, (ruling.stands,), ruling.overruled)
        return ruling

    def close(self) -> None:
        super().close()
        self.memory.close()


class RememberingRater:
    """The same for a judge that rates: a ``Rater``."""

    def __init__(self, judge: Rater, memory: Memory) -> None:
        self.name, self._judge, self.memory = judge.name, judge, memory

    async def ready(self) -> None:
        await self._judge.ready()

    async def rate(self, groups: Sequence[CandidateGroup]) -> list[Rating | JudgeFailure]:
        found = await asyncio.gather(*(self._rate(group) for group in groups))
        return [r for ratings in found for r in ratings]

    async def _rate(self, group: CandidateGroup) -> Sequence[Rating | JudgeFailure]:
        key = question_key(group.prompt, group.candidates)
        if (known := self.memory.recall(key)) is not None:
            return _ratings.validate_python(known["judgements"])
        ratings = await self._judge.rate([group])
        self.memory.keep(key, ratings)
        return ratings

    def close(self) -> None:
        self._judge.close()
        self.memory.close()


def remembering(judge: Rater | Arbiter, memory: Memory) -> RememberingArbiter | RememberingRater:
    return RememberingArbiter(judge, memory) if isinstance(judge, Arbiter) else RememberingRater(judge, memory)


def _failed(record: Mapping[str, Any]) -> bool:
    return any(j.get("outcome") == Outcome.FAILED for j in record["judgements"])


def judgements_of(record: Mapping[str, Any]) -> tuple[Judgement, ...]:
    """The judgements that stand in a record of such a journal."""
    return _judgements.validate_python(record["judgements"])


def costs(records: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """What the judgements in records of any such journal, or of a ledger's, have cost, by the judge's definition.

    A judgement that stands in several records (of a group that had to wait for people, say) was paid for once.
    """
    found: Counter[str] = Counter()
    seen: set[str] = set()
    for record in records:
        for judgement in (*record["judgements"], *record["overruled"]):
            if judgement["cost"] and (key := content_id(judgement)) not in seen:
                seen.add(key)
                found[judgement["judge"]["definition_hash"]] += judgement["cost"]
    return found


def _locked(path: Path) -> IO[str]:
    """Held until the file is closed, or its process dies."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise LedgerError(
            f"{path.parent} is in use by another process that judges the same: wait until it has ended"
        ) from None
    return file


def question_key(prompt: Prompt, responses: Sequence[Response]) -> str:
    """What was asked: everything that a judge may look at, and the ids that its judgement names."""
    turns = [[m.role, m.content] for m in prompt.messages]
    return content_id(prompt.id, turns, prompt.meta, [[r.id, r.token_ids, r.text] for r in responses])


def judge_identity(judge: Judge, initial_model: str) -> str:
    """Hash of whatever the judge's opinions follow from: its configuration, files, models, a rule's source.

    ``initial_model`` is the directory that ``judge.model: initial`` means.
    """
    parts: list[Any] = [scientific(JudgeSection(judge=judge))]
    for _, single in singles("judge", judge):
        if isinstance(single, RuleJudge):
            parts.append(_source(single.rule))
        if isinstance(single, (LlmJudge, RewardModelJudge, ImplicitJudge)):
            parts.append(model_identity(initial_model if single.model == "initial" else single.model))
        if isinstance(single, ImplicitJudge):
            parts.append(model_identity(single.reference))
    return content_id(*parts)


def _source(rule: str) -> str:
    """What a rule's module says now: it may have been edited since."""
    try:
        spec = importlib.util.find_spec(rule.partition(":")[0])
    except ImportError:
        return ""  # the judge's actors say what is wrong with it
    return Path(spec.origin).read_text() if spec is not None and spec.origin and Path(spec.origin).is_file() else ""
