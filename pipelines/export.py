"""A trained policy -> a Hugging Face directory that plain transformers and plain vLLM load."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from actors.weights import WeightFiles
from pipelines.judging.reward_model import SCORE, classify
from pipelines.ledger.checkpoints import newest_whole
from pipelines.ledger.ledger import read_record

if TYPE_CHECKING:
    import torch

    from actors.shards import State

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")


class ExportError(RuntimeError):
    """There is nothing to export, or nowhere to put it."""


def export_weights(weights: Iterable[tuple[str, torch.Tensor]], model_path: Path, out: Path) -> Path:
    """Write ``weights`` beside tokenizer, chat template and configuration of ``model_path``; all or nothing.

    Weights with a scalar head are a reward model: the configuration becomes that of a sequence classifier.
    """
    from huggingface_hub import save_torch_state_dict

    state = dict(weights)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in model_path.iterdir():
        if path.is_file() and not path.name.endswith(_WEIGHT_SUFFIXES):
            shutil.copy2(path, partial)
    if SCORE in state:
        classify(partial)
    save_torch_state_dict(state, partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return out


def export_published(directory: Path, model_path: Path, out: Path) -> Path:
    """Export a published version (``actors.weights``)."""
    return export_weights(WeightFiles.open(directory), model_path, out)


def export_run(run_dir: Path, out: Path) -> Path:
    """Export a run: its final model, or else its newest whole checkpoint.

    Raises ExportError naming what is missing, and rather than overwrite what is not a model.
    """
    if out.exists() and any(out.iterdir()) and not (out / "config.json").exists():
        raise ExportError(f"{out} exists and is not a model directory; choose an empty or a new directory")
    final = run_dir / "model"
    if (final / "config.json").exists():
        shutil.copytree(final, out, dirs_exist_ok=True)
        return out
    checkpoint = newest_whole(run_dir)
    if checkpoint is None:
        raise ExportError(
            f"{run_dir} holds neither a final model nor a whole checkpoint; "
            f"let the run reach its first checkpoint (checkpoint.every)"
        )
    return export_checkpoint(run_dir, checkpoint[1], out)


def export_checkpoint(run_dir: Path, checkpoint: Path, out: Path) -> Path:
    """Export what the run's trainer had saved in the directory ``checkpoint``."""
    record = read_record(run_dir)
    assert record is not None, f"{run_dir} has checkpoints but no run.json"
    fields = record.fields
    scale = float(fields["model.lora.alpha"]) / float(fields["model.lora.rank"]) if "model.lora.rank" in fields else 0.0
    weights = _checkpoint_weights(checkpoint, fields["model.dtype"], scale)
    return export_weights(weights, Path(fields["model.path"]), out)


def _checkpoint_weights(checkpoint: Path, dtype: str, scale: float = 0.0) -> Iterable[tuple[str, torch.Tensor]]:
    """fp32 master weights out of a checkpoint, adapters merged with ``scale``, cast to the model's dtype."""
    import torch

    from actors.shards import Shares

    stored = Shares(checkpoint)
    target = getattr(torch, dtype)
    if not any(".lora_" in name for name in stored.state.shapes):
        for name, tensor in stored.weights():
            yield name, tensor.to(target)
        return
    trained = dict(stored.weights())
    for name, tensor in _frozen(stored.state, target):
        module = name.rpartition(".")[0]
        down = trained.get(f"{module}.lora_A.default.weight") if name.endswith(".weight") else None
        if down is not None:
            tensor = tensor.float() + scale * trained[f"{module}.lora_B.default.weight"] @ down
        yield name, trained.get(name, tensor).to(target).contiguous()


def _frozen(state: State, dtype: torch.dtype) -> Iterable[tuple[str, torch.Tensor]]:
    """Parameters of the model that training started from; tied ones once."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if state.scores:
        lm = AutoModelForSequenceClassification.from_pretrained(state.model, dtype=dtype, num_labels=1)
    else:
        lm = AutoModelForCausalLM.from_pretrained(state.model, dtype=dtype)
    for name, parameter in lm.named_parameters():
        yield name, parameter.detach()
