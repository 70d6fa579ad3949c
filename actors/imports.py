"""Importing large libraries in half the time; a run does it in a dozen processes."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

OPTIONAL = ("sklearn", "scipy", "cv2", "mlflow")
"""What Transformers, vLLM, DeepSpeed and NLTK import where it is installed, for features that no stage uses: assisted
decoding, object detection, video, autotuning, a wrapper of classifiers."""


@contextmanager
def lean_imports(*needed: str) -> Iterator[None]:
    """Import libraries in the block as if ``OPTIONAL``, but for ``needed``, were not installed, and collect no garbage.

    None in ``sys.modules`` is Python's own sign for a module that is not there. Libraries that ask for one in the block
    take it for missing in this process from then on; after it, everything can be imported again. Modules are never
    garbage: collecting among hundreds of thousands of their new objects is a quarter of an import, so they are frozen.
    """
    hidden = [name for name in OPTIONAL if name not in sys.modules and name not in needed]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # so that what checks for leaks at the very end finds none
        if collecting:
            gc.enable()
        for name in hidden:
            if name in sys.modules and sys.modules[name] is None:
                del sys.modules[name]


_LONGEST_COMPILATION_S = 900
_LONGEST_LOADING_S = 10  # of an operator that is compiled


def operators_of_this_environment() -> None:
    """Have DeepSpeed keep its compiled operators in the environment that compiled them, and find ninja there.

    In the one folder that all environments of a person share by default, each would take what another compiled for out
    of date, and compile it anew for a minute.
    """
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    if "TORCH_EXTENSIONS_DIR" in os.environ:
        for lock in Path(os.environ["TORCH_EXTENSIONS_DIR"]).glob("*/lock"):
            with suppress(FileNotFoundError):  # whoever held it is done
                _remove_if_left_behind(lock)


def _remove_if_left_behind(lock: Path) -> None:
    """Who is killed while compiling or loading leaves a lock, and torch would wait for ever for its release.

    Its owner keeps it open, which only this machine's processes can be asked for; where the environment lies on a
    shared disk, its owner may be on another machine and gets the time that its work can take.
    """
    longest = _LONGEST_LOADING_S if any(lock.parent.glob("*.so")) else _LONGEST_COMPILATION_S
    while not _is_open(lock):
        if time.time() - lock.stat().st_mtime > longest:
            lock.unlink()
            return
        time.sleep(0.1)


def _is_open(file: Path) -> bool:
    """Whether a process of this machine has the file open."""
    target = str(file.resolve(strict=True))
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # ended meanwhile, or somebody else's
            if os.readlink(descriptor) == target:
                return True
    return False
