"""How much disk a run will take, from its configuration and the sizes in the model's files alone.

Checkpoints, published weights and the export follow from the model; journals are bounded from above by counting every
response at its longest. Bytes a token are measured on real journals: ids and log-probs are written as text.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from configs.judges import RuleJudge
from configs.opponents import LeaguePlayer, PreviousPlayer, ReferencePlayer
from configs.runs import RunConfig, TrainingConfig
from configs.schema import LoRA
from pipelines.checks import Check, Level
from pipelines.disk import size_of

Shapes = Sequence[tuple[str, Sequence[int]]]
"""Names and shapes of a model's tensors."""
_GB = 1e9
_STATES = 12  # bytes a trained parameter: fp32 master weights and Adam's two moments
_CANDIDATE, _CANDIDATE_TOKEN = 320, 32  # a journaled response: its record, and id, log-prob and text of a token
_SCORE_TOKEN = 22  # a reference log-prob
_JUDGEMENT, _RATIONALE = 400, 1200  # a judgement of a candidate, and the words of a judge that has some
_ROW = 600  # of MLflow's samples table, besides the response
_METRICS = 30_000  # an iteration in MLflow's database
_OTHER = 5e6  # logs, plots and notes of a run


def needed(config: TrainingConfig, shapes: Shapes, *, shared: bool) -> Mapping[str, float]:
    """GB by what takes it. ``shared``: new weights pass through shared memory, not the run's directory."""
    parameters = sum(math.prod(shape) for _, shape in shapes)
    weights = parameters * (2 if config.model.dtype == "bfloat16" else 4)
    trained = parameters if config.model.lora is None else adapter_parameters(shapes, config.model.lora)
    a_checkpoint = trained * _STATES + (weights if config.model.lora is not None else 0)
    if config.reference.refresh != "fixed":
        a_checkpoint += parameters * 4
    found: dict[str, float] = {
        "checkpoints": (config.checkpoint.keep + config.checkpoint.keep_best + 1)
        * a_checkpoint,  # an old one goes last
        "export": 2 * weights,  # and MLflow's copy of it
    }
    if config.reference.refresh != "fixed":
        found["reference"] = 2 * parameters * 4
    if not shared:
        found["weights"] = 2 * weights
    if players := _players(config):
        found["players"] = players * weights
    found["journals"] = _journals(config) + _OTHER
    return {what: size / _GB for what, size in found.items()}


def _players(config: TrainingConfig) -> int:
    """Earlier versions of the policy that are kept to play against it, and one more while the oldest still goes."""
    if not isinstance(config, RunConfig):
        return 0
    opponents, staleness = config.opponents, config.run.max_staleness
    kept = 0
    for opponent in opponents:
        match opponent:
            case LeaguePlayer(size=size):
                kept += size
            case PreviousPlayer(lag=lag):
                kept += lag + staleness
            case ReferencePlayer():
                kept += 1
    return kept + (kept > 0)


def _journals(config: TrainingConfig) -> float:
    if not isinstance(config, RunConfig):
        return 0.0  # what a file's items take depends on the file; it is no more than a few times its size
    sampling, evaluation, steps = config.sampling, config.evaluation, config.run.steps
    a_response = _CANDIDATE + _CANDIDATE_TOKEN * sampling.max_tokens
    a_prompt = sampling.candidates + sum(o.candidates for o in config.opponents)
    responses = steps * sampling.prompts_per_step * a_prompt
    words = 0 if isinstance(config.judge, RuleJudge) else _RATIONALE
    rounds = 2 + (steps // evaluation.every if evaluation.every else 0)
    trained = 2 * steps * sampling.prompts_per_step * (config.pairing.max_pairs or 1)
    return (
        responses * (a_response + _JUDGEMENT + words)
        + (trained * _SCORE_TOKEN * sampling.max_tokens if config.needs_reference else 0)
        + rounds * evaluation.prompts * a_response
        + steps * _METRICS
        + responses * (_ROW + 5 * sampling.max_tokens)
    )


def adapter_parameters(shapes: Shapes, lora: LoRA) -> int:
    """Parameters of LoRA's A [r, in] and B [out, r] on the linear layers that ``lora.target`` names."""
    total = 0
    for name, shape in shapes:
        module = name.removesuffix(".weight").rpartition(".")[2]
        if len(shape) != 2 or not name.endswith(".weight") or "embed" in module or module == "lm_head":
            continue
        wanted = (lora.target,) if isinstance(lora.target, str) else lora.target
        if "all-linear" in wanted or module in wanted:
            total += lora.rank * sum(shape)
    return total


def forecast(config: TrainingConfig, shapes: Shapes, *, shared: bool, base: Path) -> Check:
    """What is needed against what is free under ``base``; what a run that goes on has there already counts as free."""
    parts = needed(config, shapes, shared=shared)
    run_dir = Path(config.run.root) / config.run.name
    there = size_of(run_dir) / _GB if run_dir.is_dir() else 0.0
    free = shutil.disk_usage(base).free / _GB + there
    told = ", ".join(f"{what} {size:.1f}" for what, size in parts.items())
    steps = f" in {config.run.steps} steps" if isinstance(config, RunConfig) else ""
    detail = f"about {sum(parts.values()):.1f} GB{steps} ({told}), {free:.1f} GB free"
    if there:
        detail += f" with the {there:.1f} GB that the run has"
    if sum(parts.values()) <= free:
        return Check("disk forecast", Level.OK, detail)
    fix = "free space, set run.root to a larger disk, keep fewer checkpoints (checkpoint.keep), or train LoRA adapters"
    certain = sum(size for what, size in parts.items() if what != "journals")
    return Check("disk forecast", Level.FAIL if certain > free else Level.WARN, detail, fix)
