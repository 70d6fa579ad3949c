"""``rondo verify``: an audit of a run directory. Every breach names file and line; there should be none.

It reads and changes nothing: no lock is taken, so a running run may be audited, as of the moment. What it knows of the
configuration is what ``run.json`` holds; neither models nor a cluster are needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from pipelines.data.rules import DataError
from pipelines.data.runs import record_of, recorded_rules
from pipelines.ledger.audit.findings import Findings
from pipelines.ledger.audit.journals import Journals, read_journals
from pipelines.ledger.audit.judging import (
    check_candidates,
    check_fates,
    check_purchases,
    check_scores,
    groups_of,
    sampled_items,
)
from pipelines.ledger.audit.stores import check_checkpoints, check_model, check_tracking
from pipelines.ledger.audit.training import check_items, check_steps, lineage
from pipelines.ledger.events import PreparedStep, history
from pipelines.ledger.record import RunRecord, schema_of
from pipelines.ledger.status import phases

Say = Callable[[str], None]
SHOWN = 50  # breaches that are printed


def audit(run_dir: Path) -> Findings:
    """Everything that can be wrong with one run. Raises DataError where it has no readable ``run.json``."""
    found = Findings()
    record = record_of(run_dir)
    journals = read_journals(run_dir, schema_of(run_dir), found)
    check_steps(journals.steps, found)
    told = history([line.record for line in journals.steps])
    if "pairing.strategy" in record.fields:
        _check_online(run_dir, record, journals, found)
    else:
        _check_offline(record, journals, found)
    check_checkpoints(run_dir, told, found)
    check_model(run_dir, record, told, found)
    check_tracking(run_dir, record, told, found)
    return found


def _check_online(run_dir: Path, record: RunRecord, journals: Journals, found: Findings) -> None:
    held = lineage(journals.steps)
    check_items(held, 1.0, found)
    check_candidates(journals.candidates, journals.judgements, found)
    check_purchases(journals.judgements, found)
    complete = {line.record.step: line for line in journals.steps if isinstance(line.record, PreparedStep)}
    try:
        rules = recorded_rules(record)
        prompts = int(record.fields["sampling.prompts_per_step"])
    except (DataError, ValueError, KeyError) as error:
        found.breach(str(run_dir / "run.json"), f"its fields do not say how pairs were made: {error}")
        return
    made = check_fates(groups_of(journals), complete, prompts, rules, found)
    if _scored(record):
        check_scores(journals.scores, sampled_items(held, made), _reference(record), found)


def _check_offline(record: RunRecord, journals: Journals, found: Findings) -> None:
    held = lineage(journals.steps)
    try:
        epochs = float(record.fields.get("data.epochs", "1"))
    except ValueError:
        epochs = float("inf")
    check_items(held, epochs, found)
    if _scored(record):
        check_scores(journals.scores, sampled_items(held, {}), _reference(record), found)


def _scored(record: RunRecord) -> bool:
    """Whether an objective of the run asks for the reference's log-probs."""
    from preference.objectives import REGISTRY

    try:
        terms = json.loads(record.fields.get("objective.terms", "[]"))
        names = [record.fields.get("objective.name", ""), *(t["name"] for t in terms)]
    except (ValueError, KeyError, TypeError):
        return False
    return any(REGISTRY[n].reference for n in names if n in REGISTRY)


def _reference(record: RunRecord) -> str | None:
    return "initial" if record.fields.get("reference.refresh", "fixed") == "fixed" else None


def verify(run_dir: Path, say: Say) -> int:
    """Audit a run, and the supervised phase before it if it has one; returns the exit code, 1 for a breach."""
    wrong = 0
    for phase in phases(run_dir):
        found = audit(phase)
        for breach in found.breaches[:SHOWN]:
            say(f"BREACH {breach}")
        if len(found.breaches) > SHOWN:
            say(f"... and {len(found.breaches) - SHOWN} more")
        for note in found.notes:
            say(f"note: {note}")
        count = len(found.breaches)
        say(f"{phase}: {count or 'no'} {'breach' if count == 1 else 'breaches'} in {_counts(found.counted)}")
        wrong += count
    return int(wrong > 0)


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {what}" for what, n in counted.items()) or "nothing"
