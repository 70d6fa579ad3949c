"""preference/ stays pure: importing all of it loads none of the heavy engines."""

import subprocess
import sys
from pathlib import Path

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
        p.name
        for p in ROOT.glob("[a-z]*/**/*.py")
        if not {"tests", "build"} & set(p.parts) and "import mlflow" in p.read_text()
    ]
    assert set(users) <= {"tracking.py"}
