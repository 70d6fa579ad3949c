"""``rondo rejudge``: a run's candidates judged anew, by other guidelines, another template or another judge.

    ledger (read only) ──candidates──> judge ──> judgements.jsonl ──> drift ──> report.json, tables
                       ──old judgements──────────────────────────────^      ──> pairs.jsonl (--apply)

Everything new lies in ``RUN/rejudged/<identity of the judge>``; the run's own journals are never touched. The new judge
is asked about every match that the old one judged, so that the two can be compared, and then about whatever else its
own tournament takes. Interrupted, it goes on from what it has been told.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actors.faults import Fault, Faults
from configs.judges import HttpJudge, singles
from configs.judging import Rejudge
from configs.loading import configure, read_yaml
from configs.schema import Model, Prompts
from pipelines.data import DataError
from pipelines.data.files import item_line
from pipelines.data.runs import finished_run, journal, judged_prompts, prompt_file, recorded_rules
from pipelines.judging.judges import HELDOUT, Surroundings, start_judge
from pipelines.judging.remembered import (
    Memory,
    RememberingArbiter,
    RememberingRater,
    judge_identity,
    judgements_of,
    remembering,
)
from pipelines.ledger.judged import response_type
from pipelines.ledger.ledger import RunRecord
from pipelines.ledger.recorded import recorded_sections
from pipelines.look.output import write_json, write_lines
from pipelines.play.contestants import initial_model
from pipelines.progress import Progress
from pipelines.prompts import PromptError, load_prompts
from preference.drift import Drift, Rejudged, drift, duel, only
from preference.judge_metrics import judge_metrics
from preference.pairing import PairingRules, make_items, next_matches
from preference.reports import JudgeMetrics
from preference.types import CandidateGroup, JudgedGroup, JudgeInfo, Match, Outcome, Prompt, Response, Verdict
from preference.winrate import WinRate

DIRECTORY = "rejudged"


@dataclass(frozen=True, slots=True)
class Opinionated:
    """One side of the comparison."""

    judges: tuple[JudgeInfo, ...]
    """Whose judgements stand; several where judges hand on to others."""
    metrics: JudgeMetrics
    heldout: WinRate | None
    """Of the newest held-out answers over the initial policy's; None where this judge has judged none."""


@dataclass(frozen=True, slots=True)
class RejudgeReport:
    run: str
    directory: str
    old: Opinionated
    new: Opinionated
    drift: Drift
    heldout_step: int
    """Step whose held-out answers were judged; 0: none."""
    asked: int
    """Questions (matches, or groups to rate) that were put to the judge this time."""
    remembered: int
    """Those that an earlier attempt had put to it."""
    pairs: str
    """File of the new pairs; empty: not written."""
    seconds: float


def rejudge_config(
    run_dir: Path, record: RunRecord, judge_file: str | None, overrides: Sequence[str], here: Path
) -> Rejudge:
    """The run's own judge with ``overrides`` (relative paths: from ``here``), or the one that ``judge_file`` holds.

    The file is YAML with a section ``judge:`` or that section alone. Raises ConfigError.
    """
    if judge_file is None:
        raw = recorded_sections(record, ("judge",), overrides, (here, run_dir))
        return configure(Rejudge, raw, overrides, here)
    given = read_yaml(judge_file)
    raw = {k: v for k, v in given.items() if k in Rejudge.model_fields} if "judge" in given else {"judge": given}
    based = configure(Rejudge, raw, (), Path(judge_file).resolve().parent)  # its paths are from its own folder
    return configure(Rejudge, based.model_dump(mode="json"), overrides, here) if overrides else based


async def rejudge(
    run_dir: Path, config: Rejudge, progress: Progress, *, apply: bool = False, prompts: Path | None = None
) -> RejudgeReport:
    """Judge the candidates of a run that has ended, compare, and write ``report.json``; ``apply``: pairs, too.

    ``prompts`` is the run's file of training prompts, where it does not ship. Raises DataError where the run goes on,
    has judged nothing, or its prompts are not to be found; JudgeError and StageFailed where the judge cannot judge.
    """
    from actors.quiet import quiet_driver
    from pipelines.cluster import connect

    started = time.monotonic()
    record = finished_run(run_dir)
    rules, initial = recorded_rules(record), str(initial_model(run_dir, record))
    out = run_dir / DIRECTORY / judge_identity(config.judge, initial)
    logs = out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    quiet_driver(logs / "driver.log")
    connect()
    quiet_driver(logs / "driver.log")  # again: libraries put up handlers when imported
    memory = Memory(out / "judgements.jsonl")
    around = _around(config, initial, int(record.fields["run.seed"]), out, progress, memory)
    started_judge = start_judge(config.judge, around, "judge")
    judge = remembering(started_judge, memory)  # begins to start while the prompts are read
    try:
        known, heldout_known = await asyncio.to_thread(_prompts, record, prompts, progress)
        groups = _judged(run_dir, known)
        step, heldout = _heldout(run_dir, heldout_known)
        await judge.ready()
        again = _Again(judge, rules, progress, len(groups) + len(heldout))
        new, heldout_new = await asyncio.gather(
            asyncio.gather(*(again.judge(g) for _, g in groups)),
            asyncio.gather(*(again.duel(g.group) for g in heldout)),
        )
    finally:
        judge.close()
    both = [Rejudged(place, old, judged) for (place, old), judged in zip(groups, new, strict=True)]
    pairs = out / "pairs.jsonl" if apply else None
    if pairs is not None:
        items = (item for group in new for item in make_items(group, rules).items)
        write_lines(pairs, (json.dumps(item_line(item), ensure_ascii=False) for item in items))
    report = RejudgeReport(
        run=run_dir.name,
        directory=str(out),
        old=_side([g for _, g in groups], heldout),
        new=_side(new, heldout_new),
        drift=drift(both, rules),
        heldout_step=step,
        asked=memory.asked,
        remembered=memory.found,
        pairs=str(pairs or ""),
        seconds=time.monotonic() - started,
    )
    write_json(out / "report.json", report)
    return report


class _Again:
    """Asks the new judge what the old one was asked, and what is needed to decide besides."""

    def __init__(
        self, judge: RememberingArbiter | RememberingRater, rules: PairingRules, progress: Progress, total: int
    ) -> None:
        self._judge, self._rules, self._progress, self._total = judge, rules, progress, total
        self._done = 0

    async def judge(self, old: JudgedGroup) -> JudgedGroup:
        judged = JudgedGroup(old.group, ())
        if isinstance(self._judge, RememberingRater):
            judged = replace(judged, judgements=tuple(await self._judge.rate([old.group])))
        else:
            wanted: Sequence[Match] = matches_of(old)
            while wanted or (wanted := next_matches(judged, self._rules)):
                rulings = await self._judge.rule(0, wanted)
                judged = replace(
                    judged,
                    judgements=(*judged.judgements, *(r.stands for r in rulings if r.stands is not None)),
                    overruled=(*judged.overruled, *(o for r in rulings for o in r.overruled)),
                )
                wanted = ()
        self._count()
        return judged

    async def duel(self, group: CandidateGroup) -> JudgedGroup:
        """Two answers to a held-out prompt: no tournament, whatever the run's rules say of its candidates."""
        if isinstance(self._judge, RememberingRater):
            judged = JudgedGroup(group, tuple(await self._judge.rate([group])))
        else:
            [ruling] = await self._judge.rule(0, [Match(group.prompt, *group.candidates)])
            judged = JudgedGroup(group, () if ruling.stands is None else (ruling.stands,))
        self._count()
        return judged

    def _count(self) -> None:
        self._done += 1
        self._progress.stage(0, "rejudge", self._done, self._total, 0)


def matches_of(judged: JudgedGroup) -> tuple[Match, ...]:
    """The matches that were judged, each once; verdicts that follow from an answer written by a person among them."""
    own = {c.id: c for c in judged.group.candidates}
    said = [j for j in judged.judgements if isinstance(j, Verdict) and j.outcome is not Outcome.FAILED]
    twos = dict.fromkeys((j.first_id, j.second_id) for j in said if j.first_id in own and j.second_id in own)
    return tuple(Match(judged.group.prompt, own[first], own[second]) for first, second in twos)


def _around(
    config: Rejudge, initial_model: str, seed: int, out: Path, progress: Progress, memory: Memory
) -> Surroundings:
    def lost(fault: Fault) -> None:
        progress.warning(f"{fault.cause}; replaced")

    paid = [judge for _, judge in singles("judge", config.judge) if isinstance(judge, HttpJudge)]
    return Surroundings(
        config.resources.judge, config.deadlines, out, out / "logs", initial_model, seed, progress.message,
        Faults(config.recovery, lost), memory.costs, paid,
    )  # fmt: skip


def _prompts(
    record: RunRecord, given: Path | None, progress: Progress
) -> tuple[Mapping[str, Prompt], Mapping[str, Prompt]]:
    """Training prompts and, where their file is to be found, held-out prompts."""
    files = [str(prompt_file(record, given))]
    try:
        files.append(str(prompt_file(record, None, "prompts.heldout")))
    except DataError as error:
        progress.warning(f"held-out answers are not judged: {error}")
    settings = Prompts(train=files[0], heldout=files[-1], max_tokens=int(record.fields["prompts.max_tokens"]))
    try:
        loaded = load_prompts(files, Model(path=record.fields["model.path"]), settings, 1.0)
    except PromptError as error:
        raise DataError(str(error)) from None
    return loaded[0].prompts, loaded[1].prompts if len(loaded) > 1 else {}


def _judged(run_dir: Path, prompts: Mapping[str, Prompt]) -> list[tuple[str, JudgedGroup]]:
    """What was judged in steps whose data is complete, each with its place."""
    events = journal(run_dir / "ledger" / "steps.jsonl")
    complete = {r["step"] for r in events if r["event"] == "prepared"}
    found = [(f"step {j.step}", j.group) for j in judged_prompts(run_dir, prompts) if j.step in complete]
    if not found:
        raise DataError(f"{run_dir}: nothing has been judged yet; there is nothing to judge anew")
    return found


def _heldout(run_dir: Path, prompts: Mapping[str, Prompt]) -> tuple[int, list[JudgedGroup]]:
    """(step, the newest held-out answers against the initial policy's, with what the run's first judge said)."""
    path = run_dir / "ledger" / "evals.jsonl"
    answers: dict[int, dict[str, Response]] = {}
    for record in journal(path) if path.exists() else ():
        response = response_type.validate_python({k: v for k, v in record.items() if k != "step"})
        if response.prompt_id in prompts:
            answers.setdefault(int(record["step"]), {})[response.prompt_id] = response
    newest = max((step for step in answers if step), default=0)
    if not newest or 0 not in answers:
        return 0, []
    kept = sorted((run_dir / "ledger").glob(f"{HELDOUT}-*.jsonl"))  # the judge's before the second judge's
    said = [j for file in kept[:1] for entry in journal(file) for j in judgements_of(entry)]
    both = [i for i in answers[newest] if i in answers[0]]
    groups = [CandidateGroup(prompts[i], (answers[newest][i], answers[0][i])) for i in both]
    return newest, [only(said, group) for group in groups]


def _side(judged: Sequence[JudgedGroup], heldout: Sequence[JudgedGroup]) -> Opinionated:
    judges = dict.fromkeys(JudgeInfo(j.judge.name, j.judge.definition_hash) for g in judged for j in g.judgements)
    return Opinionated(tuple(judges), judge_metrics(judged), duel(heldout))
