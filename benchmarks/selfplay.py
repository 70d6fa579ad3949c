"""Recipes of self-play on SmolLM2, one after another: held-out win rate with interval, KL, length; appended run by run.

``python -m benchmarks.selfplay [RECIPE ...] [--seeds 0,1,2] [--root DIR] [OVERRIDE ...]``: recipes are files of
configs/ by name; results go to benchmarks/results/selfplay.json, and what stands there already is not run again. All
start from the same model and answer the held-out prompts of their seed; quickstart is plain online DPO. A run takes
5 to 8 minutes on two cores. VADER is what most recipes train on; the pattern lexicon is what none does.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import RESULTS, ROOT, Run, machine, rondo

RECIPES = ("quickstart", "spin", "sppo", "xpo", "league", "self_rewarding")
FILE = RESULTS / "selfplay.json"
VADER, PATTERN = "vader_sentiment", "pattern_sentiment"


def judges(recipe: str) -> tuple[str, ...]:
    """What a recipe's held-out answers are judged by, first and second; self-rewarding has but one."""
    return (VADER,) if recipe == "self_rewarding" else (VADER, PATTERN)


def summary(recipe: str, seed: int, run: Run, overrides: list[str]) -> dict[str, Any]:
    """One line of the table: figures after the last step, and how the policy fared against its opponents."""
    last = {name: values[max(values)] for name, values in run.metrics.items()}

    def figure(name: str, digits: int = 3) -> float | None:
        value = last.get(name, math.nan)
        return round(value, digits) if math.isfinite(value) else None

    wins = {
        judge: {
            "rate": figure(f"eval/win_rate{suffix}"),
            "wilson95": [figure(f"eval/win_rate_low{suffix}"), figure(f"eval/win_rate_high{suffix}")],
            "at_equal_length": figure(f"eval/win_rate_length_controlled{suffix}"),
        }
        for judge, suffix in zip(judges(recipe), ("", "_second"), strict=False)
    }
    against = {
        name.removeprefix("opponents/").removesuffix("/win_rate"): [round(v, 3) for _, v in sorted(values.items())]
        for name, values in sorted(run.metrics.items())
        if name.startswith("opponents/") and name.endswith("/win_rate") and name.count("/") == 2
    }
    return {
        "recipe": recipe,
        "seed": seed,
        "overrides": overrides,
        "held_out": wins,
        "kl": figure("eval/kl", 1),
        "length": [figure("eval/length_before", 1), figure("eval/length_after", 1)],
        "steps": len(run.metrics.get("pairs/trained", {})),
        "pairs": round(sum(run.series("pairs/trained", 1))),
        "against_opponents_by_step": against,
        "weight_loads": round(sum(run.series("opponents/loads", 1))),
        "seconds": round(run.seconds),
        "peak_memory_gb": round(run.peak_gb, 1),
        "date": machine()["date"],
    }


def known() -> dict[str, Any]:
    if FILE.exists():
        found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
        return found
    return {"machine": machine(), "runs": []}


def write(result: dict[str, Any]) -> None:
    """After every run, so that an interrupted series loses none."""
    RESULTS.mkdir(exist_ok=True)
    partial = FILE.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(FILE)


def table(runs: list[dict[str, Any]]) -> str:
    lines = [f"{'recipe':<16} {'seed':>4}  {'VADER win rate [95%]':<24} {'pattern [95%]':<24} {'KL':>6}  length"]
    for r in runs:

        def shown(judge: str, wins: dict[str, Any] = r["held_out"]) -> str:
            if judge not in wins or wins[judge]["rate"] is None:
                return "-"
            low, high = wins[judge]["wilson95"]
            return f"{wins[judge]['rate']:.3f} [{low:.3f}, {high:.3f}]"

        before, after = r["length"]
        kl = "-" if r["kl"] is None else f"{r['kl']:.1f}"
        lines.append(
            f"{r['recipe']:<16} {r['seed']:>4}  {shown(VADER):<24} {shown(PATTERN):<24} {kl:>6}  {before} -> {after}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", help="recipes (none: all), and overrides (with =) for every one of them")
    parser.add_argument("--seeds", default="0", help="comma-separated")
    parser.add_argument("--root", help="keep the run directories here")
    given = parser.parse_args()
    overrides = [w for w in given.words if "=" in w]
    recipes = [w for w in given.words if "=" not in w] or list(RECIPES)
    if unknown := [r for r in recipes if not (ROOT / "configs" / f"{r}.yaml").is_file()]:
        sys.exit(f"no such recipe: {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    result, failed = known(), list[str]()
    with TemporaryDirectory(prefix="rondo-selfplay-") as scratch:
        root = Path(given.root).resolve() if given.root else Path(scratch)
        for seed in map(int, given.seeds.split(",")):
            for recipe in recipes:
                if any((r["recipe"], r["seed"], r["overrides"]) == (recipe, seed, overrides) for r in result["runs"]):
                    print(f"{recipe}, seed {seed}: known already", file=sys.stderr)
                    continue
                config = ROOT / "configs" / f"{recipe}.yaml"
                name = f"{recipe.replace('_', '-')}-{seed}"
                try:
                    run = rondo(root, name, f"run.seed={seed}", *overrides, config=config)
                except RuntimeError as error:  # the others are worth having all the same
                    failed.append(name)
                    print(error, file=sys.stderr)
                    continue
                result["runs"].append(summary(recipe, seed, run, overrides))
                write(result)
                print(table(result["runs"][-1:]), file=sys.stderr)
    print(table(result["runs"]))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
