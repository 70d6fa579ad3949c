"""A trained policy -> a Hugging Face directory that plain transformers and plain vLLM load."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from actors.weights import WeightFiles
from pipelines.ledger import complete_checkpoints, read_record
from pipelines.reward_model import SCORE, classify

if TYPE_CHECKING:
    import torch

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
    """Export a run: its final model, or else its newest complete checkpoint.

    Raises ExportError naming what is missing, and rather than overwrite what is not a model.
    """
    if out.exists() and any(out.iterdir()) and not (out / "config.json").exists():
        raise ExportError(f"{out} exists and is not a model directory; choose an empty or a new directory")
    final = run_dir / "model"
    if (final / "config.json").exists():
        shutil.copytree(final, out, dirs_exist_ok=True)
        return out
    checkpoints = complete_checkpoints(run_dir)
    if not checkpoints:
        raise ExportError(
            f"{run_dir} holds neither a final model nor a complete checkpoint; "
            f"let the run reach its first checkpoint (checkpoint.every)"
        )
    record = read_record(run_dir)
    assert record is not None, f"{run_dir} has checkpoints but no run.json"
    fields = record.fields
    scale = float(fields["model.lora.alpha"]) / float(fields["model.lora.rank"]) if "model.lora.rank" in fields else 0.0
    weights = _checkpoint_weights(checkpoints[-1][1], fields["model.dtype"], scale)
    return export_weights(weights, Path(record.fields["model.path"]), out)


def _checkpoint_weights(checkpoint: Path, dtype: str, scale: float = 0.0) -> Iterable[tuple[str, torch.Tensor]]:
    """fp32 master weights out of a ZeRO-3 checkpoint, adapters merged with ``scale``, cast to the model's dtype."""
    import torch
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag="state", exclude_frozen_parameters=False)
    seen: set[int] = set()
    for name, tensor in state.items():
        if id(tensor) in seen or ".lora_" in name:  # a tied projection is the embedding under a second name
            continue
        seen.add(id(tensor))
        module, base, leaf = name.partition(".base_layer.")
        if base and leaf == "weight":
            tensor = (
                tensor + scale * state[f"{module}.lora_B.default.weight"] @ state[f"{module}.lora_A.default.weight"]
            )
        yield name.replace(".base_layer.", ".").removeprefix("lm."), tensor.to(getattr(torch, dtype)).contiguous()
