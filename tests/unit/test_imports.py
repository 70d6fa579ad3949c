"""Libraries are imported without what they can do without, and nothing of that lasts."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from actors.imports import OPTIONAL, lean_imports, operators_of_this_environment

ROOT = Path(__file__).parents[2]


def test_optional_packages_are_absent_in_the_block_and_there_afterwards() -> None:
    code = (
        "import importlib.util, sys; from actors.imports import OPTIONAL, lean_imports\n"
        "with lean_imports():\n"
        "    assert not any(importlib.util.find_spec(name) for name in OPTIONAL)\n"
        "assert not set(OPTIONAL) & set(sys.modules)\n"
        "import scipy; print(scipy.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "scipy"


def test_what_is_imported_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, OPTIONAL[0], gc)
    with lean_imports():
        assert sys.modules[OPTIONAL[0]] is gc
    assert sys.modules[OPTIONAL[0]] is gc


def test_garbage_is_collected_again_after_a_failed_import() -> None:
    def broken() -> None:
        with lean_imports():
            assert not gc.isenabled()
            raise ImportError("broken")

    with pytest.raises(ImportError, match="broken"):
        broken()
    assert gc.isenabled()
    gc.unfreeze()


def test_a_lock_of_deepspeeds_operators_is_removed_when_nobody_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", os.environ["PATH"])
    lock = tmp_path / "operator" / "lock"
    lock.parent.mkdir()
    (lock.parent / "operator.so").touch()
    with lock.open("w"):
        os.utime(lock, (0, 0))  # of somebody slow: loading can take minutes on a busy machine
        operators_of_this_environment()
        assert lock.exists()
    operators_of_this_environment()
    assert not lock.exists()
