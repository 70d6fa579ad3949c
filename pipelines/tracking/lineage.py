"""Where a model comes from: data files, configuration, code, judges, pairs, and how well it did."""

from __future__ import annotations

import hashlib
from pathlib import Path

from configs.loading import INPUT_FILES, config_hash, flatten
from configs.runs import TrainingConfig
from pipelines import facts
from pipelines.ledger.journal import decode_line
from pipelines.tracking.events import DataFile
from pipelines.tracking.history import Record
from pipelines.tracking.registry import HELDOUT, WIN_RATE
from preference.types import content_id

_CONTEXTS = {"train": "training", "heldout": "heldout"}
_STEPS = Path("ledger") / "steps.jsonl"


def input_files(config: TrainingConfig) -> tuple[DataFile, ...]:
    """The files that the configuration names as data."""
    fields = flatten(config)
    files = []
    for key in INPUT_FILES:
        context = _CONTEXTS.get(key.rpartition(".")[2])
        path = Path(fields.get(key) or ".")
        if context is not None and path.is_file():
            files.append(_data_file(path.stem, path, context))
    return tuple(files)


def pair_journal(config: TrainingConfig, run_dir: Path) -> DataFile | None:
    """The journal that says which pairs every step was trained on; None where nothing has been trained."""
    path = run_dir / _STEPS
    if not path.is_file():
        return None
    with path.open("rb") as lines:
        records = [decode_line(line) for line in lines]
    pairs = sum(len(r.get("pairs", ())) for r in records if r is not None and r.get("event") == "prepared")
    return DataFile(f"{config.run.name}-pairs", str(path), digest(path), pairs, "pairs")


def model_tags(config: TrainingConfig, record: Record, pairs: DataFile | None) -> dict[str, str]:
    """From a model version back to everything that made it, and its held-out results."""
    from actors.judges.identity import model_identity

    git = facts.git_facts()
    reference = config.reference
    moved = "" if reference.refresh == "fixed" else f", moved every {reference.every} steps by {reference.alpha:g}"
    identity = f" {model_identity(config.model.path)}" if Path(config.model.path).is_dir() else ""
    tags = {
        "rondo.config_hash": config_hash(config),
        "rondo.git.commit": git["git.commit"],
        "rondo.git.dirty": git["git.dirty"],
        "rondo.version": record.version,
        "rondo.reference": f"{config.model.path}{identity}{moved}" if config.needs_reference else "none",
        **{f"rondo.judge.{content_id(name)[:8]}": f"{name} {hash}" for name, hash in record.judges.items()},
        **{f"rondo.data.{f.context}": f"{f.name} {f.digest}" for f in record.files.values()},
    }
    if pairs is not None:
        tags |= {"rondo.pairs.journal": pairs.path, "rondo.pairs.digest": pairs.digest, "rondo.pairs": str(pairs.rows)}
    if (evaluation := record.last_evaluation) is not None and "eval/win_rate" in evaluation.metrics:
        tags[WIN_RATE] = f"{evaluation.metrics['eval/win_rate']:.6f}"
        tags[HELDOUT] = content_id(evaluation.heldout, evaluation.judges[0].judge)
    return tags


def digest(path: Path) -> str:
    """First 16 hex digits of the content's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _data_file(name: str, path: Path, context: str) -> DataFile:
    rows = None
    if path.suffix == ".jsonl":
        with path.open("rb") as lines:
            rows = sum(1 for line in lines if line.strip())
    return DataFile(name, str(path), digest(path), rows, context)
