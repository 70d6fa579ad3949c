"""The trainer beside TRL 1.16's DPOTrainer: pairs with UltraFeedback's lengths, scaled down; speed and peak memory.

Both sides: SmolLM2-135M, the same pairs in the same steps, references computed beforehand, DPO with beta 0.1, AdamW
with fp32 master weights and bf16 compute, one process of as many threads as there are cores (Rondo's is a ZeRO-3 engine
of one rank, with all its hooks and copies), TRL in its best batch size of those tried. TRL's pure bf16 mode, whose
updates are rounded to bf16, is among those tried, for comparison. Within a step TRL gets the pairs sorted by length, so
that it pads as little as it can.

Memory is the peak of a real step above the peak of a step on a few tokens (weights, gradients, optimizer), summed over
processes. Repetitions alternate; medians count. The same engine also computes the same responses packed without sharing
prompts, at this mix and at one with prompts longer than responses.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import ROOT, median, save, spread
from benchmarks.trl_online_dpo import environment
from configs.loading import load_config
from configs.runs import RunConfig

REPETITIONS, PAIRS, STEPS = 3, 8, 3  # timed steps; before them one of tiny pairs and WARM to warm up
WARM = 2  # ZeRO-3 records its trace, kernels are compiled for new shapes, the heap grows
RANKS = 1  # of Rondo's trainer, each with its share of the cores
SCALE = 4
PROMPT, RESPONSE = (60, 500), (40, 700)
LONG_PROMPT, SHORT_RESPONSE = (200, 700), (40, 200)
CANDIDATES = [("autocast", 1), ("autocast", 2), ("bfloat16", 1)]
WORDS = [
    " the",
    " a",
    " of",
    " and",
    " to",
    " in",
    " is",
    " it",
    " for",
    " was",
    " on",
    " with",
    " day",
    " time",
    " one",
]


def draw(rng: random.Random, bounds: tuple[int, int]) -> int:
    """A length in ``bounds`` / SCALE, log-uniform: many short ones, a long tail."""
    low, high = bounds
    return round(low * (high / low) ** rng.random() / SCALE)


def pair(rng: random.Random, prompt: int, chosen: int, rejected: int) -> dict[str, str]:
    """Text whose words are one token each; TRL ends a response with one more."""
    text = ["".join(rng.choice(WORDS) for _ in range(n)) for n in (prompt, chosen - 1, rejected - 1)]
    return dict(zip(("prompt", "chosen", "rejected"), text, strict=True))


def steps(seed: int, prompt: tuple[int, int], response: tuple[int, int]) -> list[list[dict[str, str]]]:
    """A step of tiny pairs, then real ones, each sorted by length."""
    rng = random.Random(seed)
    found = [[pair(rng, 4, 3, 3) for _ in range(PAIRS)]]
    for _ in range(STEPS + WARM):
        drawn = [pair(rng, draw(rng, prompt), draw(rng, response), draw(rng, response)) for _ in range(PAIRS)]
        found.append(sorted(drawn, key=lambda p: len(p["prompt"]) + max(len(p["chosen"]), len(p["rejected"]))))
    return found


def trl(python: Path, scratch: Path, data: Path, mode: str, batch: int) -> dict[str, Any]:
    settings = {**_common(data), "mode": mode, "batch": batch, "pairs": PAIRS, "scratch": str(scratch / "trl")}
    words = [str(python), "-m", "benchmarks.trl_dpo_worker", json.dumps(settings)]
    return _run(words, {"OMP_NUM_THREADS": str(os.cpu_count())})


def rondo(scratch: Path, data: Path, long_prompts: Path, ranks: int) -> dict[str, Any]:
    settings = {**_common(data), "long_prompts": str(long_prompts)}
    settings["threads"] //= ranks
    words = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--log-dir={scratch}"]
    words += ["-m", "benchmarks.dpo_worker", json.dumps(settings)]
    return _run(words, {"OMP_NUM_THREADS": str(settings["threads"]), "DS_ACCELERATOR": "cpu"})


def _common(data: Path) -> dict[str, Any]:
    model = load_config(RunConfig, "configs/quickstart.yaml").model.path
    return {"model": model, "data": str(data), "beta": 0.1, "lr": 1e-5, "threads": os.cpu_count()}


def _run(words: list[str], env: dict[str, str]) -> dict[str, Any]:
    from actors.pool import process_env
    from configs.schema import Group

    # Both sides get the allocator settings that Rondo gives its processes: without them PyTorch pays for page faults.
    allocator = {"GLIBC_TUNABLES": process_env(Group())["GLIBC_TUNABLES"]}
    full = {**os.environ, **allocator, "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore", **env}
    full["PATH"] = f"{Path(words[0]).parent}:{full['PATH']}"
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=full, check=False)
    lines = [line.partition("RESULT ")[2] for line in done.stdout.splitlines() if "RESULT " in line]
    if done.returncode or not lines:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-3000:])
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def main() -> None:
    python = environment()
    with TemporaryDirectory(prefix="rondo-bench-") as directory:
        scratch = Path(directory)
        data, long_prompts = scratch / "data.json", scratch / "long.json"
        data.write_text(json.dumps(steps(0, PROMPT, RESPONSE)))
        long_prompts.write_text(json.dumps(steps(1, LONG_PROMPT, SHORT_RESPONSE)))
        tried = {f"{mode} {batch}": trl(python, scratch, data, mode, batch) for mode, batch in CANDIDATES}
        for name, found in tried.items():
            print(
                f"TRL {name}: {median(found['seconds'][WARM:]):.1f} s a step, {found['peak_mb']:.0f} MB",
                file=sys.stderr,
            )
        batch = min(
            (b for m, b in CANDIDATES if m == "autocast"),
            key=lambda b: median(tried[f"autocast {b}"]["seconds"][WARM:]),
        )
        ours, theirs = [], []
        for repetition in range(REPETITIONS):
            ours.append(rondo(scratch, data, long_prompts, RANKS))
            theirs.append(trl(python, scratch, data, "autocast", batch))
            each = [f"{median(x[-1]['seconds'][WARM:]):.2f}" for x in (ours, theirs)]
            print(f"repetition {repetition + 1}: rondo, TRL: {', '.join(each)} s a step", file=sys.stderr)

    def seconds(runs: list[dict[str, Any]]) -> list[float]:
        return [s for run in runs for s in run["seconds"][WARM:]]

    tokens = ours[0]["tokens"]
    save(
        "trl_dpo",
        {
            "pairs_a_step": PAIRS,
            "tokens_of_pairs_a_step": round(tokens),
            "rondo_seconds": spread(seconds(ours)),
            "trl_seconds": spread(seconds(theirs)),
            "trl_pure_bf16_seconds": spread(tried["bfloat16 1"]["seconds"][WARM:]),
            "trl_batch_size": batch,
            "trl_tried": {
                name: {"seconds": median(x["seconds"][WARM:]), "peak_mb": round(x["peak_mb"])}
                for name, x in tried.items()
            },
            "rondo_tokens_per_s": round(tokens / median(seconds(ours)), 1),
            "trl_tokens_per_s": round(tokens / median(seconds(theirs)), 1),
            "speedup": round(median(seconds(theirs)) / median(seconds(ours)), 2),
            "first_loss": {"rondo": ours[0]["losses"][0], "trl": theirs[0]["losses"][0]},
            "rondo_peak_mb": spread([r["peak_mb"] for r in ours]),
            "trl_peak_mb": spread([r["peak_mb"] for r in theirs]),
            "trl_pure_bf16_peak_mb": round(tried["bfloat16 1"]["peak_mb"]),
            "memory_ratio": round(median(r["peak_mb"] for r in ours) / median(r["peak_mb"] for r in theirs), 3),
            "sharing_over_packing": spread([r["sharing"]["mix"] for r in ours]),
            "sharing_over_packing_long_prompts": spread([r["sharing"]["long_prompts"] for r in ours]),
            "ranks_waiting_share": ours[0]["waiting"],
        },
    )


if __name__ == "__main__":
    main()
