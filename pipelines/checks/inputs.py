"""The model directory and the judges. Sizes come from file headers: no weights are read and no rule is imported."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.judges import RuleJudge, singles
from configs.opponents import ModelPlayer
from configs.runs import OfflineConfig, RunConfig, TrainingConfig
from pipelines.checks import Check, Level
from pipelines.prepare_model import MODEL_NAME, tensors, weight_files

_MAKE_MODEL = "make setup"
_MOST = 2**40  # a tensor's side that is longer is damage, not a model


def model(config: TrainingConfig) -> list[Check]:
    """What the model directory lacks; one check a problem."""
    directory = Path(config.model.path)
    fix = _MAKE_MODEL if directory.name == MODEL_NAME else "set model.path to a complete Hugging Face model directory"
    if not directory.is_dir():
        return [Check("model", Level.FAIL, f"{directory} is not a directory", fix)]
    chat = not (isinstance(config, OfflineConfig) and config.data.template == "none")
    problems = [Check("model", Level.FAIL, f"{directory}: {p}", fix) for p in _model_problems(directory, chat)]
    return problems or [Check("model", Level.OK, f"{directory}, {_count(config)}")]


def opponents(config: TrainingConfig) -> list[Check]:
    """The same of every model that plays against the policy."""
    checks = []
    for number, player in enumerate(config.opponents if isinstance(config, RunConfig) else ()):
        if isinstance(player, ModelPlayer):
            directory, fix = (
                Path(player.path),
                f"set opponents.{number}.path to a complete Hugging Face model directory",
            )
            problems = list(_model_problems(directory, chat=True)) if directory.is_dir() else ["not a directory"]
            checks += [Check(f"opponent {player.name}", Level.FAIL, f"{directory}: {p}", fix) for p in problems]
            if not problems:
                checks.append(Check(f"opponent {player.name}", Level.OK, str(directory)))
    return checks


def _model_problems(directory: Path, chat: bool) -> Iterator[str]:
    if not (directory / "config.json").is_file():
        yield "config.json is missing"
    elif _json(directory / "config.json") is None:
        yield "config.json is not a JSON object"
    if list(directory.glob("*.safetensors")):
        try:
            _headers(directory)
        except (OSError, ValueError) as error:
            yield str(error)
    elif others := sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in directory.glob(pattern)):
        yield f"weights are read from safetensors only, found {', '.join(others[:3])}"
    else:
        yield "no *.safetensors file"
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        yield "no tokenizer.json and no tokenizer.model"
    settings = _json(directory / "tokenizer_config.json") or {}
    if chat and not (directory / "chat_template.jinja").is_file() and not settings.get("chat_template"):
        yield "no chat template (chat_template.jinja, or chat_template in tokenizer_config.json)"


def _json(file: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _headers(directory: Path) -> list[dict[str, Any]]:
    """Headers of the files that hold the weights. Raises OSError or ValueError for a missing or broken one."""
    if (directory / "model.safetensors").is_file() or (directory / "model.safetensors.index.json").is_file():
        files = weight_files(directory)  # not all: some models carry the same weights a second time
    else:
        files = sorted(directory.glob("*.safetensors"))
    return [tensors(file) for file in files]


def shapes(config: TrainingConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the model's tensors; none when its files cannot be read, which ``model`` reports."""
    try:
        headers = _headers(Path(config.model.path))
        found = [(name, tuple(map(int, entry["shape"]))) for header in headers for name, entry in header.items()]
        return found if all(0 <= size < _MOST for _, shape in found for size in shape) else []
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return []


def parameters(config: TrainingConfig) -> int:
    """How many parameters the model has; 0 when its files cannot be read."""
    return sum(math.prod(shape) for _, shape in shapes(config))


def _count(config: TrainingConfig) -> str:
    return f"{parameters(config) / 1e6:,.0f} M parameters"


def rules(config: TrainingConfig) -> dict[str, str]:
    """The rule of every judge of the run, under the section that names it."""
    if not isinstance(config, RunConfig):
        return {}
    judges = list(singles("judge", config.judge))
    if config.evaluation.judge is not None:
        judges += singles("evaluation.judge", config.evaluation.judge)
    return {section: judge.rule for section, judge in judges if isinstance(judge, RuleJudge)}


def judge(section: str, rule: str) -> Check:
    """Only the top-level package is looked up: finding a submodule would import its parents."""
    package = re.split(r"[.:]", rule)[0]
    try:
        found = importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        found = False
    if found:
        return Check(section, Level.OK, rule)
    fix = f"install it, put its folder on PYTHONPATH, or correct {section}.rule"
    return Check(section, Level.FAIL, f"{rule}: no module named {package}", fix)
