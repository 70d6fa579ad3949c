"""Scaling: what saturates first at 100, 1,000 and 10,000 GPUs, and what each remedy is worth, planned and simulated.

Llama-3-8B on nodes of eight H100 with 3.2 Tbit/s each, 4 responses of about 420 tokens (at most 1,024) to each prompt,
a rule as judge. Nothing is run but the simulation: minutes on one core.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from benchmarks.common import save
from configs.loading import validate
from configs.runs import RunConfig
from pipelines.plan.architecture import architecture
from pipelines.plan.cluster import Cluster
from pipelines.plan.layout import Layout, Planner
from pipelines.plan.scenario import pipeline
from pipelines.plan.search import best_layout
from pipelines.plan.simulate import Simulation
from pipelines.plan.workload import workload
from preference.admission import AdmissionRules

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
SIZES = ((13, 512), (125, 4096), (1250, 8192))  # nodes, prompts a step: a batch does not grow with the cluster for ever
STEPS = 40
LADDER: tuple[tuple[str, dict[str, Any]], ...] = (
    ("weights through a shared file system of 10 GB/s", {"transport": "filesystem"}),
    ("weights broadcast between GPUs", {"transport": "broadcast"}),
    ("and a driver of 0.2 ms a prompt", {"transport": "broadcast", "efficiency": {"driver_s": 0.0002}}),
    ("and a driver of 0.02 ms a prompt", {"transport": "broadcast", "efficiency": {"driver_s": 0.00002}}),
)


def planner(nodes: int, prompts: int, assumed: dict[str, Any]) -> Planner:
    config = validate(
        RunConfig,
        {
            "run": {"name": "scaling", "root": "/tmp"},
            "model": {"path": "/none"},
            "prompts": {"train": "/t", "heldout": "/h", "max_tokens": 512},
            "sampling": {"prompts_per_step": prompts, "candidates": 4, "max_tokens": 1024, "max_model_len": 2048},
            "batching": {"micro_batch_tokens": 4096, "activation_checkpointing": True},
            "judge": {"kind": "rule", "rule": "a:b"},
        },
    )
    pool = {"nodes": nodes, "gpus": 8, "gpu": "H100-SXM", "network_gbit_s": 3200}
    spec = {"pools": [pool], "storage_gb_s": 10, "workload": {"response_tokens": 440}, **assumed}
    cluster = Cluster.model_validate(spec)
    return Planner(architecture(LLAMA_8B), config, cluster, workload(config, cluster))


def row(title: str, plan: Planner, layout: Layout, steps: int, **changes: Any) -> dict[str, Any]:
    """One line of the table: planned and simulated. ``changes``: fields of the admission rules."""
    scenario = pipeline(plan, layout, steps)
    rules = scenario.rules
    if changes:
        rules = AdmissionRules(rules.batch, layout.staleness, steps=steps, **changes)
    found = Simulation(replace(scenario, rules=rules)).run()
    slowest = max(found.waits, key=lambda w: found.waits[w], default="nothing")
    return {
        "what": title,
        "gpus": plan.cluster.size,
        "prompts": plan.work.prompts,
        "used": sum(r.gpus for r in layout.rows),
        "staleness": layout.staleness,
        "groups": {r.name: r.gpus for r in layout.rows if r.gpus},
        "planned_s": round(layout.period, 3),
        "bottleneck": layout.bottleneck,
        "weights_s": round(layout.path.seconds, 3),
        "simulated_s": round(found.period, 3),
        "pairs_per_s": round(found.pairs_per_s, 1),
        "busy": {name: round(share, 2) for name, share in found.utilisation.items()},
        "trainer_waits_for": {slowest: round(found.waits.get(slowest, 0.0), 2)},
        "too_old": found.stale,
        "failures": found.failures,
        "sampled_again": found.restarted,
        "events": found.events,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for nodes, prompts in SIZES:
        for title, assumed in LADDER:
            plan = planner(nodes, prompts, assumed)
            rows.append(row(title, plan, best_layout(plan), options.steps))
            print(line(rows[-1]), flush=True)
        one = best_layout(plan, 1)
        rows.append(row("the same, one step ahead", plan, one, options.steps))
        print(line(rows[-1]), flush=True)
        spare = {"order": "finished", "spare": prompts // 4}
        rows.append(row("and a quarter more prompts, stragglers dropped", plan, one, options.steps, **spare))
        print(line(rows[-1]), flush=True)
    nodes, prompts = SIZES[1]
    weak = planner(nodes, prompts, {**LADDER[-1][1], "reliability": {"gpu_mtbf_hours": 20}})
    rows.append(row("GPUs that fail every 20 hours", weak, best_layout(weak), 5 * options.steps))
    print(line(rows[-1]), flush=True)
    save("scaling", {"steps": options.steps, "rows": rows})


def line(r: dict[str, Any]) -> str:
    """Of the table in docs/scaling.md."""
    waits = ", ".join(f"{name} {share:.0%}" for name, share in r["trainer_waits_for"].items())
    groups = " + ".join(f"{r['groups'].get(name, 0):,}" for name in ("sampler", "reference", "trainer"))
    bottleneck = r["bottleneck"].partition(" (")[0]
    return (
        f"| {r['gpus']:,} | {r['what']} | {groups} | {r['staleness']} | {bottleneck} | {r['planned_s']:.2f} | "
        f"{r['simulated_s']:.2f} | {r['pairs_per_s']:,.0f} | {waits} |"
    )


if __name__ == "__main__":
    main()
