"""Which checkpoints are kept: the newest, and the best by a metric of their steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from actors.files import replace_file
from configs.loading import ConfigError
from configs.runs import OfflineConfig, RunConfig, TrainingConfig
from configs.schema import Checkpointing
from pipelines.ledger.journal import saving
from pipelines.look.dictionary import METRICS, is_known

MEASURED = "checkpoints/measured.json"


def refuse_unmeasured(config: TrainingConfig) -> None:
    """Raise ConfigError where the best are kept by what is no metric, or is not measured at the checkpoints' steps."""
    rules = config.checkpoint
    if not rules.keep_best:
        return
    metric = rules.best_metric
    if not is_known(metric):
        raise ConfigError(f"checkpoint.best_metric = {metric}: no such metric; known: {', '.join(METRICS)}")
    knob, every = "", 1
    if metric.startswith("eval/") and isinstance(config, RunConfig):
        knob, every = "evaluation.every", config.evaluation.every
    elif metric.startswith("heldout/") and isinstance(config, OfflineConfig):
        knob, every = "data.evaluate_every", config.data.evaluate_every
    elif metric.startswith(("eval/", "heldout/")):
        raise ConfigError(f"checkpoint.best_metric = {metric} is not measured in this kind of training")
    if not every or rules.every % every:
        raise ConfigError(
            f"checkpoint.keep_best = {rules.keep_best} by {metric}, which {knob} = {every} does not measure at every "
            f"checkpoint (checkpoint.every = {rules.every}): set {knob}={rules.every}, or a divisor of it"
        )


def kept_steps(steps: Iterable[int], rules: Checkpointing, values: Mapping[int, float]) -> set[int]:
    """The newest, and the best by the ``values`` of the metric, where it was measured."""
    known = sorted(steps)
    sign = 1 if rules.best == "max" else -1
    ranked = sorted((s for s in known if s in values), key=lambda s: (sign * values[s], s), reverse=True)
    return {*known[-rules.keep :], *ranked[: rules.keep_best]}


@dataclass(frozen=True, slots=True)
class Measured:
    """``measured.json``: the values, by step, of the metric that the best checkpoints are kept by."""

    metric: str
    values: dict[int, float]

    @classmethod
    def read(cls, run_dir: Path, metric: str) -> Measured:
        """Empty where nothing, or another metric, has been recorded."""
        try:
            found = _measured.validate_json((run_dir / MEASURED).read_bytes())
        except (OSError, ValidationError):
            return cls(metric, {})
        return found if found.metric == metric else cls(metric, {})

    def encode(self) -> bytes:
        return _measured.dump_json(self)

    def write(self, run_dir: Path) -> None:
        with saving("what checkpoints were measured by", run_dir):
            (run_dir / "checkpoints").mkdir(exist_ok=True)
            replace_file(run_dir / MEASURED, self.encode())


_measured: TypeAdapter[Measured] = TypeAdapter(Measured)


def measured_steps(run_dir: Path) -> set[int]:
    """The steps at which a run measured the metric that it keeps the best checkpoints by, whichever that is."""
    try:
        return set(_measured.validate_json((run_dir / MEASURED).read_bytes()).values)
    except (OSError, ValidationError):
        return set()
