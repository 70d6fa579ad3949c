"""Write tests/vectors/trl.json: losses and gradients by TRL's own code, which the objectives are tested against.

    python -m scripts.trl_vectors

Two releases, since none has everything: 0.24 has cDPO's ``label_smoothing``, BCO's delta, the paper's alpha, XPO and
Nash-MD, all gone since, and 1.16 the later objectives. Each gets an environment of its own under build/, made on first
use, in which ``trl_losses.py`` computes its cases on the inputs made here.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "tests" / "vectors" / "trl.json"
TORCH = "2.13.0"
RELEASES = {
    "0.24.0": ["trl==0.24.0", "transformers==4.57.6", "accelerate==1.15.0", "datasets==4.8.4", "pandas==3.1.1"],
    "1.16.0": ["trl==1.16.0", "transformers==5.19.0", "accelerate==1.15.0", "datasets==5.2.0"],
}
PAIRS = 6


def environment(release: str) -> Path:
    """The Python that has this release of TRL, installed on first use."""
    home = ROOT / "build" / f"trl-{release}"
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        print(f"making the environment of TRL {release} ({home.relative_to(ROOT)})", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        torch = subprocess.run([*pip, f"torch=={TORCH}+cpu"], check=False, capture_output=True)
        if torch.returncode:
            index = "https://download.pytorch.org/whl/cpu"
            subprocess.run([*pip, f"torch=={TORCH}", "--index-url", index], check=True)
        subprocess.run([*pip, *RELEASES[release]], check=True)
        (home / "ready").touch()
    return python


def inputs() -> dict[str, Any]:
    """Pairs by token, the judge's probability, which response the reference wrote, and mismatched responses for KTO."""
    rng = random.Random(20240)

    def draw(low: float, high: float, count: int) -> list[float]:
        return [round(rng.uniform(low, high), 4) for _ in range(count)]

    def response() -> dict[str, list[float]]:
        count = rng.randint(1, 6)
        policy = draw(-2.5, -0.4, count)
        reference = [round(p + d, 4) for p, d in zip(policy, draw(-0.8, 0.8, count), strict=True)]
        # Collision above -.4: the weights of WPO stay below 1, where TRL, which does not clamp them, agrees.
        return {"policy": policy, "reference": reference, "collision": draw(-0.4, -0.05, count)}

    chosen, rejected, mismatched = ([response() for _ in range(PAIRS)] for _ in range(3))
    return {
        "chosen": chosen,
        "rejected": rejected,
        "mismatched": mismatched,
        "probability": draw(0.1, 0.9, PAIRS),
        "from_reference": [1, -1, -1, 1, -1, 1],
    }


def main() -> None:
    given = inputs()
    cases: dict[str, Any] = {}
    for release in RELEASES:
        command = [str(environment(release)), str(ROOT / "scripts" / "trl_losses.py"), release]
        done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        cases |= json.loads(done.stdout.splitlines()[-1])
    OUTPUT.parent.mkdir(exist_ok=True)
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(case)}" for name, case in sorted(cases.items()))
    OUTPUT.write_text(f'{{\n  "inputs": {json.dumps(given)},\n  "cases": {{\n{lines}\n  }}\n}}\n')
    print(f"{len(cases)} cases in {OUTPUT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
