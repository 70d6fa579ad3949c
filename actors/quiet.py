"""Where third-party chatter goes: into a file, so that the terminal belongs to the progress display."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

_CHATTY = (
    "ray",
    "ray.data",
    "transformers",
    "deepspeed",
    "DeepSpeed",
    "mlflow",
    "alembic",
    "sqlalchemy",
    "vllm",
    "huggingface_hub",
)
_ENV = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_OFFLINE": "1",  # models are directories: nothing is ever fetched
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a FutureWarning for every actor without a GPU
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
}


def quiet_env() -> dict[str, str]:
    """Environment variables that silence the libraries; a variable the person has set keeps that value."""
    return {name: os.environ.get(name, value) for name, value in _ENV.items()}


def redirect_output(log_file: Path) -> None:
    """Append everything this process writes to stdout and stderr to ``log_file``, C++ libraries included."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    target = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(target, descriptor)
    if target > 2:
        os.close(target)
    # New objects: whatever stood here (Ray puts its own) may write elsewhere or buffer past a crash.
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def quiet_driver(log_file: Path) -> None:
    """Send logging and warnings of the driver process to ``log_file`` and set ``quiet_env`` for it and its children.

    Libraries put their handlers up when they are imported: call it before they are, and again after to take those
    down. Repeated calls leave one handler.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    os.environ.update(quiet_env())
    handler = _LogFile(log_file, encoding="utf-8", errors="backslashreplace", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    for name in ("", "py.warnings", *_CHATTY):
        logger = logging.getLogger(name)
        for old in list(logger.handlers):
            if isinstance(old, _LogFile) or _writes_to_terminal(old):
                logger.removeHandler(old)
                if isinstance(old, _LogFile):
                    old.close()
        if logger is not root:
            logger.propagate = True
            if logger.level:
                logger.setLevel(max(logger.level, logging.INFO))  # Ray Data sets DEBUG and filters in its handlers
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)


class _LogFile(logging.FileHandler):
    """Told apart from handlers that others put up."""


def _writes_to_terminal(handler: logging.Handler) -> bool:
    stream = getattr(handler, "stream", None)
    return getattr(stream, "name", None) in ("<stdout>", "<stderr>", 1, 2) or type(stream).__module__.startswith(
        "mlflow"
    )
