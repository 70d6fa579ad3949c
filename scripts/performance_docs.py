"""Write docs/performance.md from measured results: ``python -m scripts.performance_docs``; a test keeps it current."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FILE = ROOT / "docs" / "performance.md"
HEAD = """# Performance

Every number here is taken from a committed result of a script in `benchmarks/` when this page is made
(`python -m scripts.performance_docs`). Medians, with the least and the greatest in brackets where a script repeats. All
of it was measured on two virtual cores that share their machine with others: seconds move by a fifth from hour to hour,
so only what was alternated within one run should be compared. **Nothing has been measured on a GPU.** What a cluster
would do is computed, not measured: [scaling.md](scaling.md).
"""
STAGES = {"sample": "sampler", "reference": "reference", "train": "trainer"}
"""A stage's name in an iteration, and among the ceilings."""


def spread(found: dict[str, Any], unit: str, digits: int = 1) -> str:
    return f"{found['median']:,.{digits}f} {unit} [{found['min']:,.{digits}f}, {found['max']:,.{digits}f}]"


def rows(columns: str, *cells: tuple[str, ...]) -> list[str]:
    head = f"| {columns} |"
    return [head, "|---" * (head.count("|") - 1) + "|", *(f"| {' | '.join(row)} |" for row in cells), ""]


def trl_dpo(r: dict[str, Any]) -> list[str]:
    return [
        f"{r['pairs_a_step']} pairs a step ({r['tokens_of_pairs_a_step']:,} tokens), lengths drawn as in UltraFeedback "
        f"(a quarter of them), SmolLM2-135M, fp32 master weights, bf16 compute, references precomputed, alternated "
        f"repetitions. TRL 1.16 at its fastest batch size ({r['trl_batch_size']}).",
        "",
        *rows(
            "a step of the trainer | Rondo | TRL's DPOTrainer",
            ("time", spread(r["rondo_seconds"], "s"), spread(r["trl_seconds"], "s")),
            (
                "memory above weights, gradients, optimizer",
                spread(r["rondo_peak_mb"], "MB", 0),
                spread(r["trl_peak_mb"], "MB", 0),
            ),
        ),
        f"**{r['speedup']:.2f} times as fast in {r['memory_ratio']:.0%} of the memory.** TRL's pure bf16 mode, which "
        f"rounds updates: {spread(r['trl_pure_bf16_seconds'], 's')}. Computing a prompt once for both responses makes "
        f"forward and backward {spread(r['sharing_over_packing'], 'times', 2)} as fast as packing alone, "
        f"{spread(r['sharing_over_packing_long_prompts'], 'times', 2)} where prompts are longer than responses.",
        "",
    ]


def trl_online_dpo(r: dict[str, Any]) -> list[str]:
    return [
        f"{r['iteration']}, alternated.",
        "",
        *rows(
            "an iteration | Rondo | TRL's OnlineDPOTrainer",
            ("time", spread(r["rondo_seconds"], "s"), spread(r["trl_seconds"], "s")),
        ),
        f"**{r['speedup']:.2f} times as fast.**",
        "",
    ]


def iteration(r: dict[str, Any]) -> list[str]:
    stages, alone = r["rondo_seconds_by_stage"], r["ceiling_seconds_by_stage"]
    table = [(n, f"{s:.2f}", f"{alone[STAGES[n]]:.2f}" if n in STAGES else "") for n, s in stages.items()]
    return [
        f"{r['iteration']}: the same iteration stage by stage, beside what each stage does alone on the same prompts "
        "and packed batches (plain `LLM.generate`, a plain forward, a bare ZeRO-3 engine).",
        "",
        *rows("stage | in the iteration, s | alone, s", *table, ("whole", f"{r['rondo_seconds']['median']:.2f}", "")),
        f"The whole is {r['ratio']:.2f} times the sum of the stages alone ({r['ceiling_seconds']:.2f} s); judging "
        "hides behind sampling.",
        "",
    ]


def demo(r: dict[str, Any]) -> list[str]:
    e = r["evaluation"]
    judges = [
        (
            name,
            f"{e[f'eval/win_rate{s}']:.3f} [{e[f'eval/win_rate_low{s}']:.3f}, {e[f'eval/win_rate_high{s}']:.3f}]",
            f"{e[f'eval/win_rate_length_controlled{s}']:.3f}",
            f"{e[f'eval/score_before{s}']:+.2f} -> {e[f'eval/score_after{s}']:+.2f}",
        )
        for name, s in (("VADER, trained on", ""), ("Pattern, not trained on", "_second"))
    ]
    return [
        f"`make demo` on a prepared machine: {r['seconds']:.0f} s from the command to the report, "
        f"{r['peak_memory_gb']:.1f} GB of memory at most, {e['eval/kl']:.1f} nats of KL per answer at the end.",
        "",
        *rows("judge | win rate [Wilson 95%] | at equal length | mean score", *judges),
    ]


def reference(r: dict[str, Any]) -> list[str]:
    names = {"reference_pool": "reference pool", "trainer_forward": "the trainer's own forward",
             "plain_padded": "a plain padded forward"}  # fmt: skip
    table = [(name, spread(r["tokens_per_s"][key], "tokens/s", 0)) for key, name in names.items()]
    return [
        f"{r['pairs']}.",
        "",
        *rows("who scores | throughput", *table),
        f"The pool reaches {r['pool_over_trainer_forward']:.0%} of the trainer's forward and "
        f"{r['pool_over_plain']:.2f} times the padded one.",
        "",
    ]


def vocabulary(r: dict[str, Any]) -> list[str]:
    cases = [name for name in r if name.startswith(("float32", "bfloat16"))]
    small, large = (key for key in r[cases[0]] if key.endswith(("0_mb", "4_mb")))
    return [
        f"A step of a small Llama over {r['tokens']:,} tokens: its peak above parameters, optimizer states and "
        f"gradients. A chunk of fp32 logits over the larger vocabulary is {r['chunk_mb']:.0f} MB.",
        "",
        *rows(
            f"weights | vocabulary of {small[:-3]} | of {large[:-3]} | difference in chunks",
            *(
                (name, spread(r[name][small], "MB", 0), spread(r[name][large], "MB", 0),
                 f"{r[name]['difference_in_chunks']:.2f}")
                for name in cases
            ),
        ),
        "Tied, input and output share their matrix and its gradient: the rows that a batch reads are added in place.",
        "",
    ]  # fmt: skip


def judging(r: dict[str, Any]) -> list[str]:
    return [
        f"{r['questions_a_round']} questions of {r['tokens_a_question']} tokens a round; plain is `LLM.generate` of "
        "one token on the same prompts, both with a prefix cache, alternated.",
        "",
        *rows(
            "| LLM judge | plain vLLM",
            ("tokens/s", *(spread(r[f"{k}_tokens_per_s"], "", 0).replace("  ", " ") for k in ("judge", "plain"))),
        ),
        f"Ratio by rounds: {spread(r['ratio'], 'times', 2)}. Why the judge comes out ahead is not fully explained "
        "([judging.md](judging.md#speed)).",
        "",
    ]


def human_store(r: dict[str, Any]) -> list[str]:
    table = [
        (
            name, f"{found['labels_per_s']:,.0f}", f"{found['p50_ms']:.0f} ms", f"{found['p99_ms']:.0f} ms",
            str(found["kills"]), str(found["lost"]), str(found["doubled"]),
        )
        for name, found in (("undisturbed", r["undisturbed"]), ("server killed under load", r["killed"]))
    ]  # fmt: skip
    return [
        f"{r['clients']} scripted people who label as fast as they are answered, over HTTP, on SQLite; server and "
        "clients share the two cores.",
        "",
        *rows("| labels/s | half within | 99% within | kill -9 | lost | doubled", *table),
    ]


def selfplay(r: dict[str, Any]) -> list[str]:
    def won(run: dict[str, Any], judge: str) -> str:
        found = run["held_out"].get(judge)
        return f"{found['rate']:.3f} [{found['wilson95'][0]:.3f}, {found['wilson95'][1]:.3f}]" if found else ""

    table = [
        (
            f"`{run['recipe']}.yaml`", str(run["seed"]), won(run, "vader_sentiment"), won(run, "pattern_sentiment"),
            f"{run['kl']:.1f}", " -> ".join(f"{x:.0f}" for x in run["length"]), str(run["pairs"]),
        )
        for run in r["runs"]
    ]  # fmt: skip
    return [
        "Each recipe as it ships, on SmolLM2-135M: held-out win rate against the model that all began with, on "
        "128 prompts. KL is to the reference as it is at the end: for `spin` and `sppo`, whose reference has just "
        "become the policy, it says nothing about the way that was gone. `self_rewarding` has one judge beside "
        "itself.",
        "",
        *rows("recipe | seed | VADER [Wilson 95%] | Pattern | KL | tokens an answer | pairs", *table),
        "One seed says which recipes learn, not which is best. Every recipe whose judge knows the task learns it, "
        "among them SPIN, which asks no judge at all and learns from 64 written answers. The self-rewarding policy "
        "does not: SmolLM2-135M cannot grade, and its interval holds 0.5.",
        "",
    ]


def overlap(r: dict[str, Any]) -> list[str]:
    bound = r["of_bound"]
    return [
        f"The real loop over stages of set length (Ray actors that sleep), {len(r['grid'])} settings of stage times, "
        f"spread and staleness, {r['steps']} steps each. It reaches {bound['median']:.1%} of the bound that the "
        f"slowest stage sets (least {bound['min']:.1%}; {r['below_95_percent']} settings below 95%), and staleness "
        f"makes a step up to {r['greatest_speed_up']:.1f} times as short.",
        "",
        "![Measured step times against the bound](../benchmarks/results/overlap.png)",
        "",
    ]


def control_plane(r: dict[str, Any]) -> list[str]:
    table = [
        (
            str(s["actors"]), str(s["prompts_per_step"]), f"{s['seconds_per_step']:.2f}", f"{s['pairs_per_s']:.1f}",
            f"{s['driver_cpu_s_per_step']:.2f}", f"{1000 * s['driver_cpu_s_per_prompt']:.1f}",
            f"{s['driver_busy']:.0%}",
        )
        for s in r["scales"]
    ]  # fmt: skip
    return [
        f"The real source, pools, ledger, packing and command stream over paced actors (a step would take "
        f"{r['paced_step_s']:.1f} s if driving cost nothing), max_staleness {r['max_staleness']}.",
        "",
        *rows(
            "actors | prompts a step | s a step | pairs/s | driver CPU, s a step | ms a prompt | driver busy", *table
        ),
    ]


def simulator(r: dict[str, Any]) -> list[str]:
    lines = []
    for name in ("overlap", "control_plane"):
        if found := r.get(name):
            lines += [
                f"Fitted to {found['calibrated_on']} cells of `{name}`, held to the other {found['validated_on']}: "
                f"{found['within_10_percent']} of them within 10%, mean absolute error "
                f"{found['mean_absolute_error']:.1%}.",
                "",
            ]
    return lines


def scaling(r: dict[str, Any]) -> list[str]:
    return [
        f"Computed and simulated, {len(r['rows'])} layouts of up to {max(row['gpus'] for row in r['rows']):,} GPUs: "
        "the table is in [scaling.md](scaling.md#what-saturates-first).",
        "",
    ]


def judge_agreement(r: dict[str, Any]) -> list[str]:
    shown = r["pairwise"]["shown_first_preferred"]
    return [
        f"Not speed but worth: {r['model']} as a judge of {r['pairs']} pairs preferred what was shown first in "
        f"{shown['share']:.0%} of {shown['of']} questions "
        "([judging.md](judging.md#how-good-is-smollm2-135m-instruct)).",
        "",
    ]


SECTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], list[str]]]] = {
    "demo": ("The quickstart", demo),
    "trl_dpo": ("The trainer beside TRL", trl_dpo),
    "trl_online_dpo": ("An online iteration beside TRL", trl_online_dpo),
    "iteration": ("Where the time goes", iteration),
    "reference": ("The reference pool", reference),
    "vocabulary": ("Memory and the size of the vocabulary", vocabulary),
    "judging": ("Judging beside plain vLLM", judging),
    "judge_agreement": ("What a small judge is worth", judge_agreement),
    "human_store": ("People's labels", human_store),
    "selfplay": ("Self-play and opponents", selfplay),
    "overlap": ("Overlap", overlap),
    "control_plane": ("The control plane", control_plane),
    "simulator": ("The simulator", simulator),
    "scaling": ("Past one machine", scaling),
}


def measured(r: dict[str, Any]) -> str:
    m = r["machine"]
    return f"{m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB, Python {m['python']}, {m['date']}"


def about(script: Path) -> str:
    """The first line of a script's docstring."""
    return (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def render(results: Path = RESULTS) -> str:
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))}
    lines = [HEAD]
    for name, (title, section) in SECTIONS.items():
        if name in found:
            lines += [f"## {title}", "", *section(found[name])]
            lines += [f"*`python -m benchmarks.{name}`; {measured(found[name])}*", ""]
    if others := [name for name in found if name not in SECTIONS]:
        lines += ["## Further results", ""]
        lines += rows(
            "script | what it measures | result",
            *(
                (
                    f"`python -m benchmarks.{name}`",
                    about(ROOT / "benchmarks" / f"{name}.py"),
                    f"[{name}.json](../benchmarks/results/{name}.json), {found[name]['machine']['date']}",
                )
                for name in others
            ),
        )
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
    print(FILE)
