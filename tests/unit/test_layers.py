"""Who may import whom: preference/ stays pure, and no layer knows the ones above it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_preference_imports_no_engine():
    modules = [f"preference.{p.stem}" for p in (ROOT / "preference").glob("*.py") if p.stem != "__init__"]
    modules += ["preference.objectives.step"]
    code = (
        f"import sys, {', '.join(modules)}; print([m for m in ('ray','vllm','deepspeed','mlflow') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_only_tracking_imports_mlflow():
    users = [
        p.relative_to(ROOT)
        for room in ("preference", "actors", "pipelines", "configs")
        for p in (ROOT / room).rglob("*.py")
        if re.search(r"^\s*(from|import) mlflow\b", p.read_text(), re.MULTILINE)
    ]
    assert users
    assert {p.parent for p in users} == {Path("pipelines/tracking")}


ABOVE = {"preference": {"configs", "actors", "pipelines"}, "configs": {"actors", "pipelines"}, "actors": {"pipelines"}}


@pytest.mark.parametrize("layer", ABOVE)
def test_no_layer_imports_one_above_it(layer):
    found = []
    for path in (ROOT / layer).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            found += [f"{path.relative_to(ROOT)}: {n}" for n in names if n.partition(".")[0] in ABOVE[layer]]
    assert found == []
