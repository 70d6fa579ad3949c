"""``rondo score``: a reward model's scores, or a trained policy's implicit rewards, of responses in a file.

Pairs (whatever `rondo offline` reads) come out with both rewards, and can be read as pairs again: their margin is then
the model's, and what it disagrees with is left out. Candidates for best-of-n, ``{"prompt", "responses": [...]}``, come
out as they were, with a reward each and the number of the best.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from pydantic import ValidationError

from actors.faults import Faults
from actors.judges.implicit import ImplicitPool
from actors.judges.protocol import Rater
from actors.judges.reward_model import RewardModelPool
from configs.judges import ImplicitJudge, RewardModelJudge
from configs.loading import ConfigError
from configs.schema import Deadlines, Group, Recovery
from pipelines.data import DataError, DataRules, load_items
from pipelines.data.encode import Encoder, model_encoder
from pipelines.data.records import Graded, read_context, read_prompt
from pipelines.data.report import Unfit
from pipelines.progress import Progress
from preference.types import CandidateGroup, JudgeFailure, Labelled, Pair, Prompt, Written
from preference.winrate import win_rate

_NO_LIMIT = 2**31
_RULES = DataRules(max_prompt_tokens=_NO_LIMIT, max_response_tokens=_NO_LIMIT)


def scoring_judge(model: str, reference: str | None, knobs: Mapping[str, Any]) -> RewardModelJudge | ImplicitJudge:
    """The judge that scores; ``knobs`` are of its section. Raises ConfigError naming those that it does not have."""
    path = str(Path(model).resolve())
    try:
        if reference is None:
            return RewardModelJudge(kind="reward_model", model=path, **knobs)
        return ImplicitJudge(kind="implicit", model=path, reference=str(Path(reference).resolve()), **knobs)
    except ValidationError as error:
        kind = "a reward model (no --reference)" if reference is None else "implicit rewards (--reference)"
        problems = [
            f"--{'-'.join(str(k).replace('_', '-') for k in e['loc'])}: not an option of {kind}"
            if e["type"] == "extra_forbidden"
            else f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}".removeprefix(": ")
            for e in error.errors()
        ]
        raise ConfigError("\n".join(problems)) from None


Value = float | str
"""A response's reward, or why it has none."""


class Entry(Protocol):
    """What is scored together, and the line that it becomes."""

    @property
    def group(self) -> CandidateGroup: ...

    def line(self, values: Sequence[Value]) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class PairEntry:
    pair: Pair

    @property
    def group(self) -> CandidateGroup:
        return CandidateGroup(self.pair.prompt, self.pair.responses)

    def line(self, values: Sequence[Value]) -> dict[str, Any]:
        """A record of pairs again: ``pipelines.data`` takes the margin from the two scores."""
        pair = self.pair
        answers = {
            side: [{"role": "assistant", "content": response.text}]
            for side, response in (("chosen", pair.chosen), ("rejected", pair.rejected))
        }
        prompt = [{"role": m.role, "content": m.content} for m in pair.prompt.messages]
        scores = {f"score_{side}": _number(v) for side, v in zip(("chosen", "rejected"), values, strict=True)}
        tied = {"tied": True} if pair.tied else {}
        return {"id": pair.id, "prompt": prompt, **answers, **scores, **tied, **_errors(dict(enumerate(values)))}


@dataclass(frozen=True, slots=True)
class ChoiceEntry:
    """Candidates for best-of-n."""

    record: Mapping[str, Any]
    prompt: Prompt
    responses: tuple[Written | str, ...]
    """Or why one cannot be scored."""

    @property
    def group(self) -> CandidateGroup:
        return CandidateGroup(self.prompt, tuple(r for r in self.responses if isinstance(r, Written)))

    def line(self, values: Sequence[Value]) -> dict[str, Any]:
        """The record with ``rewards`` and ``best``, the number of the first response with the highest."""
        scored = iter(values)
        found = [r if isinstance(r, str) else next(scored) for r in self.responses]
        rewards = [_number(v) for v in found]
        known = [r for r in rewards if r is not None]
        best = rewards.index(max(known)) if known else None
        return {**self.record, "rewards": rewards, "best": best, **_errors(dict(enumerate(found)))}


def _number(value: Value) -> float | None:
    return None if isinstance(value, str) else round(value, 6)


def _errors(values: Mapping[int, Value]) -> dict[str, dict[int, str]]:
    errors = {i: v for i, v in values.items() if isinstance(v, str)}
    return {"errors": errors} if errors else {}


async def score_file(
    judge: RewardModelJudge | ImplicitJudge, group: Group, source: Path, out: Path, progress: Progress
) -> None:
    """Score ``source`` on a pool of actors and write ``out``, all or nothing; say how often the chosen one wins.

    Raises DataError where nothing can be read or scored, JudgeError where the model is none that scores.
    """
    from actors.quiet import quiet_driver
    from pipelines.cluster import connect

    with TemporaryDirectory(prefix="rondo-score-") as scratch:
        logs = Path(scratch)
        quiet_driver(logs / "driver.log")
        connect()
        quiet_driver(logs / "driver.log")  # again: libraries put up handlers when imported
        pool = _pool(judge, group, logs)
        try:
            entries: Sequence[Entry] = await asyncio.to_thread(read_entries, source, judge.model, progress)
            await pool.ready()
            values = await _score(pool, entries, progress)
        finally:
            pool.close()
    if not any(isinstance(v, float) for found in values for v in found):
        reason = next((str(v) for found in values for v in found), "no response can be read")
        raise DataError(f"{source}: not one response could be scored; first error: {reason}")
    lines = [entry.line(found) for entry, found in zip(entries, values, strict=True)]
    partial = out.with_name(out.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    os.replace(partial, out)
    failed = [v for found in values for v in found if isinstance(v, str)]
    if failed:
        progress.warning(f"{len(failed)} responses have no reward; first error: {failed[0]}")
    progress.message(summary(entries, values))
    progress.message(f"written to {out}")


def _pool(judge: RewardModelJudge | ImplicitJudge, group: Group, logs: Path) -> RewardModelPool | ImplicitPool:
    if isinstance(judge, RewardModelJudge):
        return RewardModelPool(judge, group, Deadlines(), logs, "score", Faults(Recovery()))
    return ImplicitPool(judge, group, Deadlines(), logs, "score", Faults(Recovery()))


async def _score(pool: Rater, entries: Sequence[Entry], progress: Progress) -> list[list[Value]]:
    done = 0

    async def one(entry: Entry) -> list[Value]:
        nonlocal done
        rated = await pool.rate([entry.group]) if entry.group.candidates else []
        done += 1
        progress.stage(0, "score", done, len(entries), 0)
        return [r.error if isinstance(r, JudgeFailure) else r.value for r in rated]

    return list(await asyncio.gather(*(one(entry) for entry in entries)))


def read_entries(source: Path, model: str, progress: Progress) -> list[PairEntry] | list[ChoiceEntry]:
    """Pairs, or candidates for best-of-n; tokenised for ``model``. Raises DataError naming file and line."""
    if _holds_candidates(source):
        return _choices(source, model_encoder(model, _RULES))
    loaded = load_items(source, model_path=model, rules=_RULES)
    for line in loaded.report.lines():
        progress.message(line)
    if loaded.kind != "pairs":
        raise DataError(
            f"{source} holds {loaded.kind}: give pairs (chosen, rejected), or candidates for best-of-n "
            f'({{"prompt", "responses": [...]}})'
        )
    return [PairEntry(item) for item in loaded.items if isinstance(item, Pair)]


def _holds_candidates(source: Path) -> bool:
    """Told by the first record: a list of texts under "responses" (annotation tools keep lists of objects there)."""
    if source.is_dir() or source.suffix == ".parquet":
        return False
    try:
        with source.open(encoding="utf-8") as file:
            record = json.loads(next((line for line in file if line.strip()), "null"))
    except (OSError, ValueError, RecursionError):
        return False  # whoever reads it says what is wrong
    responses = record.get("responses") if isinstance(record, dict) else None
    return isinstance(responses, list) and "prompt" in record and all(isinstance(r, str) for r in responses)


def _choices(source: Path, encoder: Encoder) -> list[ChoiceEntry]:
    entries = []
    for number, line in enumerate(source.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                entries.append(_choice(json.loads(line), encoder))
            except (ValueError, RecursionError, Unfit) as error:
                raise DataError(f"{source}:{number}: {error}") from None
    return entries


def _choice(record: Any, encoder: Encoder) -> ChoiceEntry:
    responses = record.get("responses") if isinstance(record, dict) else None
    if not isinstance(responses, list) or not responses or not all(isinstance(r, str) for r in responses):
        raise ValueError('every line needs "prompt" and "responses", a list of at least one text')
    if "prompt" not in record:
        raise ValueError('missing "prompt"')
    context = read_context(record, read_prompt(record["prompt"]), encoder.rules)
    prompt: Prompt | None = None
    found: list[Written | str] = []
    for text in responses:
        try:
            item, _ = encoder.item(Graded(context, text, True))
        except Unfit as unfit:
            found.append(str(unfit))
            continue
        assert isinstance(item, Labelled)
        assert isinstance(item.response, Written)
        prompt = item.prompt
        found.append(item.response)
    if prompt is None:
        raise ValueError(f"no response can be scored: {found[0]}")
    return ChoiceEntry(record, prompt, tuple(found))


def summary(entries: Sequence[Entry], values: Sequence[Sequence[Value]]) -> str:
    """Pairs, without ties: accuracy with its Wilson interval, mean margin. Candidates: the best over the mean."""
    rewards = [[v for v in found if isinstance(v, float)] for found in values]
    pairs = [e.pair for e in entries if isinstance(e, PairEntry)]
    if pairs:
        whole = [r for pair, r in zip(pairs, rewards, strict=True) if len(r) == 2 and not pair.tied]
        if not whole:
            return "no pair with a winner has both rewards"
        accuracy = win_rate([r[0] for r in whole], [r[1] for r in whole])
        margin = math.fsum(r[0] - r[1] for r in whole) / len(whole)
        return f"accuracy {accuracy}, mean margin {margin:+.3f}"
    known = [r for r in rewards if r]
    gain = math.fsum(max(r) - math.fsum(r) / len(r) for r in known) / len(known)
    return f"best of {math.fsum(map(len, known)) / len(known):.1f}: {gain:+.3f} over the mean of {len(known)} prompts"
