"""The items that an earlier online run was trained on, out of its ledger: sampled ids and log-probs as they were.

Nothing is written and no lock is taken, so a finished run can be read from a read-only directory. The ledger holds no
prompts: they come from the run's prompt file, which is known by name and content hash from ``run.json``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from configs.schema import Model, Pairing, Prompts, Sampling
from configs.section import Section
from pipelines.data.encode import check_budget, check_limits, model_encoder
from pipelines.data.gather import Items, finish
from pipelines.data.report import REASON_OF_FATE, Dropped, Kept, LoadReport, Outcome, Reason, Unfit
from pipelines.data.rules import DataError, DataRules
from pipelines.ledger.events import Event, PreparedStep, TrainedStep, read_event
from pipelines.ledger.journal import LedgerError, read_lines
from pipelines.ledger.judged import Recorded, read_groups
from pipelines.ledger.lock import owner_of
from pipelines.ledger.migrate import upgraded
from pipelines.ledger.record import RunRecord, read_record, schema_of
from pipelines.pairing import pairing_rules
from pipelines.prompts import PromptError, load_prompts, load_tokenizer
from preference.pairing import PairingRules, make_items
from preference.types import Fate, Item, JudgedGroup, Judgement, Prompt, Response

_response: TypeAdapter[Response] = TypeAdapter(Response)
S = TypeVar("S", bound=Section)
_judgement: TypeAdapter[Judgement] = TypeAdapter(Judgement)
DECODED = 64  # responses decoded to tell whether the tokenizer is the run's


def load_run(
    run_dir: str | Path,
    *,
    model_path: str,
    prompts_path: str | Path | None = None,
    rules: DataRules | None = None,
    cpus: float = 1.0,
) -> Items:
    """The items of a finished run. ``prompts_path``: its training prompts; without it they are looked for by name.

    Only the limits of ``rules`` apply, and nothing is cut: log-probs belong to the ids as sampled. Raises DataError
    where the run goes on, or model or prompts are not those it was sampled with.
    """
    run_dir, rules = Path(run_dir), rules or DataRules()
    record = finished_run(run_dir)
    file = prompt_file(record, prompts_path)
    longest = _field(record, "prompts.max_tokens")
    settings = Prompts(train=str(file), heldout=str(file), max_tokens=int(longest))
    try:
        (loaded,) = load_prompts([str(file)], Model(path=model_path), settings, cpus)
    except PromptError as error:
        raise DataError(str(error)) from None
    encoder = model_encoder(model_path, rules)
    items = pairs_of_run(run_dir, record, loaded.prompts, encoder.vocab_size, rules)
    refuse_other_tokenizer(run_dir, items.items, load_tokenizer(model_path))
    return items


def record_of(run_dir: Path) -> RunRecord:
    """``run.json`` of a run; raises DataError where there is none or it is damaged."""
    try:
        record = read_record(run_dir)
    except LedgerError as error:
        raise DataError(str(error)) from None
    if record is None:
        raise DataError(f"{run_dir} is not a run: it has no run.json")
    return record


def finished_run(run_dir: Path) -> RunRecord:
    """The same of a run that no process works on; raises DataError otherwise."""
    record = record_of(run_dir)
    if owner := owner_of(run_dir):
        raise DataError(f"{run_dir} is in use by {owner}: wait until the run has ended")
    return record


def prompt_file(record: RunRecord, path: str | Path | None, field: str = "prompts.train") -> Path:
    """The run's prompts (``field``), told by their content hash; raises DataError where they are others."""
    import configs

    name, _, rest = _field(record, field).rpartition(" ")
    expected = rest.strip("()")
    file = Path(path) if path is not None else Path(configs.__file__).parent / "prompts" / name
    try:
        found = hashlib.sha256(file.read_bytes()).hexdigest()[: len(expected)]
    except OSError as error:
        raise DataError(f"the run's prompts {name}: {file}: {error.strerror}; give prompts_path") from None
    if found != expected:
        raise DataError(f"the run's prompts are {name} with hash {expected}, but {file} has hash {found}")
    return file


def pairs_of_run(
    run_dir: Path, record: RunRecord, prompts: Mapping[str, Prompt], vocab_size: int, rules: DataRules
) -> Items:
    """Items of every trained step, as the loop made them; every item counts, and every prompt that made none."""
    events = steps_of(run_dir)
    trained = {e.step for e in events if isinstance(e, TrainedStep)}
    recorded = {e.step: set(e.pairs) for e in events if isinstance(e, PreparedStep)}
    pairing = recorded_rules(record)
    outcomes: list[Outcome] = []
    rebuilt: dict[int, set[str]] = {step: set() for step in trained}
    for judged in judged_prompts(run_dir, prompts):
        place = f"{run_dir.name}: step {judged.step}, prompt {judged.group.group.prompt.id}"
        if judged.step not in trained or judged.step not in recorded:
            outcomes.append(Dropped(place, Reason.NOT_TRAINED))
            continue
        made = make_items(judged.group, pairing)
        if not made.items:
            outcomes.append(Dropped(place, REASON_OF_FATE[made.fate], "" if made.fate is Fate.TIED else made.fate))
        for item in made.items:
            rebuilt[judged.step].add(item.id)
            outcomes.append(_within(place, item, vocab_size, rules))
    for step, pairs in rebuilt.items():
        if pairs != recorded.get(step, set()):
            missing = sorted(recorded.get(step, set()) ^ pairs)
            raise DataError(
                f"{run_dir}: step {step} was trained on {len(recorded.get(step, ()))} pairs, {len(pairs)} are found "
                f"again; they differ in {', '.join(missing[:3])}: the ledger or run.json was changed"
            )
    report = LoadReport.of(str(run_dir), "run", outcomes)
    return finish([o for o in outcomes if isinstance(o, Kept)], report)


def recorded_rules(record: RunRecord) -> PairingRules:
    """How the run paired, from the fields that it recorded; knobs that it does not know of are at their defaults."""

    def section(kind: type[S], name: str, keys: Iterable[str]) -> S:
        given = {k: record.fields.get(f"{name}.{k}", "None") for k in keys}
        try:
            return kind.model_validate({k: v for k, v in given.items() if v != "None"})
        except ValidationError as error:
            wrong = error.errors()[0]
            field = ".".join(map(str, (name, *wrong["loc"][:1])))
            raise DataError(f"run.json: {field} {record.fields.get(field, '')}: {wrong['msg']}") from None

    _field(record, "pairing.strategy")
    pairing = section(Pairing, "pairing", Pairing.model_fields)
    sampling = section(Sampling, "sampling", ("missing_eos", "missing_eos_penalty"))
    try:
        return pairing_rules(pairing, sampling, int(_field(record, "run.seed")))
    except ValueError as error:
        raise DataError(f"run.json: run.seed: {error}") from None


def refuse_other_tokenizer(run_dir: Path, items: Iterable[Item], tokenizer: Any) -> None:
    """Raise DataError if most sampled ids do not decode to the text that was recorded with them."""
    responses = [r for item in items for r in item.responses][:DECODED]
    wrong = [r for r in responses if tokenizer.decode(list(r.token_ids), skip_special_tokens=True) != r.text]
    if len(wrong) > len(responses) / 2:  # a few differ in bytes that are no characters
        raise DataError(
            f"{run_dir}: {len(wrong)} of {len(responses)} responses do not decode to their recorded text, first "
            f"{wrong[0].id}: the run was sampled with another tokenizer; give its own model"
        )


@dataclass(frozen=True, slots=True)
class JudgedPrompt:
    step: int
    group: JudgedGroup


def groups_of(run_dir: Path) -> list[Recorded]:
    """Groups of candidates as ``judged.read_groups`` has them. Raises DataError."""
    ledger = run_dir / "ledger"
    try:
        return read_groups(journal(ledger / "candidates.jsonl"), journal(ledger / "judgements.jsonl"))
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise DataError(f"{run_dir}: {_another_version(error)}") from None


def steps_of(run_dir: Path) -> list[Event]:
    """What the run did, in order. Raises DataError."""
    path = run_dir / "ledger" / "steps.jsonl"
    try:
        return [read_event(record) for record in journal(path)]
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path}: {_another_version(error)}") from None


def _another_version(error: Exception) -> str:
    first = error.errors()[0] if isinstance(error, ValidationError) else None
    why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else f"{type(error).__name__} {error}"
    return f"the ledger is of another version of Rondo, or damaged: {why}; `rondo verify` names the line"


def judged_prompts(run_dir: Path, prompts: Mapping[str, Prompt]) -> Iterator[JudgedPrompt]:
    """Judged prompts in journal order. A step that was sampled again after a crash counts as it was last."""
    groups = groups_of(run_dir)
    unknown = sorted({g.prompt_id for g in groups if g.prompt_id not in prompts})
    if unknown:
        raise DataError(
            f"{run_dir}: {len(unknown)} of its prompts are not among the prompts given: {', '.join(unknown[:5])}; "
            f"give the run's own prompt file"
        )
    for group in groups:
        if not group.waiting:
            yield JudgedPrompt(group.step, group.judged(prompts[group.prompt_id]))


def journal(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a journal as today's Rondo writes them, without the torn last one that a killed process may have left.

    Raises DataError naming file and line.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; is this a run directory?")
    try:
        yield from upgraded((line.record for line in read_lines(path)), path.stem, schema_of(path.parent.parent))
    except LedgerError as error:
        raise DataError(str(error)) from None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: records of another version of Rondo: {type(error).__name__} {error}") from None


def _within(place: str, item: Item, vocab_size: int, rules: DataRules) -> Outcome:
    lengths = [len(r.token_ids) for r in item.responses]
    try:
        largest = max((t for r in item.responses for t in r.token_ids), default=0)
        if largest >= vocab_size:
            raise Unfit(Reason.OUT_OF_VOCABULARY, f"id {largest} >= {vocab_size}")
        if not min(lengths):
            raise Unfit(Reason.EMPTY_RESPONSE)
        check_limits(len(item.prompt.token_ids), lengths, rules)
        check_budget(len(item.prompt.token_ids), lengths, rules)
    except Unfit as unfit:
        return Dropped(place, unfit.reason, unfit.detail)
    return Kept(place, item)


def _field(record: RunRecord, name: str) -> str:
    if name not in record.fields:
        raise DataError(f"run.json records no {name}: it is of another version of Rondo")
    return record.fields[name]
