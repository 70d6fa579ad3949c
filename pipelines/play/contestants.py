"""Who plays in an arena: versions of a run, or any models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actors.judges.identity import model_identity
from actors.weights import WeightFiles, WeightsError
from configs.loading import ConfigError
from pipelines.export import export_checkpoint
from pipelines.ledger.checkpoints import complete_checkpoints
from pipelines.ledger.record import RunRecord, read_record
from preference.types import content_id

INITIAL, FINAL = "initial", "final"


@dataclass(frozen=True, slots=True)
class Contestant:
    name: str
    model: Path
    """Hugging Face model directory that its engine starts with."""
    identity: str
    """Hash of its weights and tokenizer, wherever they lie."""
    weights: Path | None = None
    """Published version (``actors.weights``) that the engine loads over the model's own; None: its own."""


def contestants(targets: Sequence[Path], scratch: Path) -> list[Contestant]:
    """Everybody that ``targets``, directories of runs or models, stand for; models are exported into ``scratch``.

    One that is there twice (a last checkpoint is the final model) plays once, under the first of its names. Raises
    ConfigError where a directory is neither, and where fewer than two are left.
    """
    found: list[Contestant] = []
    runs = [t for t in targets if (t / "run.json").is_file()]
    for target in targets:
        if target in runs:
            prefix = f"{target.name}/" if len(runs) > 1 else ""
            found += [replace(c, name=prefix + c.name) for c in _of_run(target, scratch / target.name)]
        elif (target / "config.json").is_file():
            found.append(Contestant(target.name, target.resolve(), model_identity(str(target))))
        else:
            raise ConfigError(f"{target} is neither a run (it has no run.json) nor a model (it has no config.json)")
    distinct: dict[str, Contestant] = {}
    for c in found:
        distinct.setdefault(c.identity, c)
    if len(distinct) < 2:
        names = ", ".join(c.name for c in found) or "none"
        raise ConfigError(f"an arena needs two players; found {names}: name another run or model")
    return _named_apart(list(distinct.values()))


def _of_run(run_dir: Path, scratch: Path) -> Iterator[Contestant]:
    record = read_record(run_dir)
    assert record is not None  # it has a run.json
    model = initial_model(run_dir, record)
    final = run_dir / "model"
    ended = record.finished if (final / "config.json").is_file() else 0
    yield Contestant(INITIAL, model, model_identity(str(model)))
    for path in sorted((run_dir / "players").glob("*.*"), key=lambda p: [*map(int, p.name.split("."))]):
        try:
            files = WeightFiles.open(path)
        except WeightsError:
            continue  # being written, or left by a process that died
        if files.version.step not in (0, ended):
            identity = content_id(model_identity(str(model)), dict(files.buckets))
            yield Contestant(f"version {files.version}", model, identity, path.resolve())
    for step, checkpoint in complete_checkpoints(run_dir):
        if step != ended:
            out = export_checkpoint(run_dir, checkpoint, scratch / f"step-{step}")
            yield Contestant(f"step {step}", out, model_identity(str(out)))
    if ended:
        yield Contestant(FINAL, final.resolve(), model_identity(str(final)))


def initial_model(run_dir: Path, record: RunRecord) -> Path:
    """What preference training began with: the model that was given, or what supervised fine-tuning made of it."""
    tuned = run_dir / "sft" / "model"
    return tuned.resolve() if (tuned / "config.json").is_file() else Path(record.fields["model.path"])


def _named_apart(players: Sequence[Contestant]) -> list[Contestant]:
    """Models of one name in different folders get the folder's in front."""
    often = Counter(p.name for p in players)
    apart = [replace(p, name=f"{p.model.parent.name}/{p.name}") if often[p.name] > 1 else p for p in players]
    if len({p.name for p in apart}) < len(apart):
        raise ConfigError(f"players need names of their own, found {', '.join(p.name for p in apart)}")
    return apart
