"""Write docs/metrics.md from the dictionaries: ``python -m scripts.metrics_docs``; a test keeps it current."""

from __future__ import annotations

from pathlib import Path

from pipelines.look.dictionary import METRICS
from pipelines.metrics import METRICS as EXPORTED
from preference.objectives import REGISTRY
from tests.unit.objectives.build import observe, random_batch

FILE = Path(__file__).parents[1] / "docs" / "metrics.md"
HEAD = """# Metrics

What a run measures, by name. In MLflow `step` is the optimizer step. What was not measured (a step that was skipped, no
probe, no second judge) is absent, never zero. Units: nats are natural logarithms of probability; *score* is the judge's
own unit (log-odds for a judge that compares); a share lies between 0 and 1. Chosen and rejected are a pair's responses,
or the desirable and undesirable ones where single responses are labelled.

`checkpoint.best_metric` takes any of these names. A metric that is not in `pipelines/look/dictionary.py` (MLflow) or
`pipelines/metrics.py` (Prometheus) is not logged. This page is made from them (`python -m scripts.metrics_docs`).

What to look at first: `eval/win_rate` with its interval beside `eval/kl`; `objective/scores` beside `objective/kl`;
`log_ratio/chosen` (falling: displacement); `response/length`; `judge/flips` and `prompts/*` (what became of them);
`mismatch/logprob` (sampler and trainer must agree).
"""
SECTIONS = {
    "": "Training",
    "rewards": "Rewards and log-probs of the trained batch",
    "objective": "The policy on fresh samples, and the objective's own figures",
    "response": "Responses, ages, exactness",
    "pairs": "What became of prompts",
    "judge": "Judging",
    "opponents": "Opponents",
    "time": "Time",
    "heldout": "Held-out items (training from files)",
    "eval": "Held-out evaluation (online)",
    "inspect": "`rondo inspect RUN`",
}
ALSO = {
    "batch": "", "logps": "rewards", "log_ratio": "rewards", "kl": "rewards", "probe": "objective",
    "policy": "response", "mismatch": "response", "prompts": "pairs", "tokens_per_s": "time",
}  # fmt: skip
"""Prefixes that stand under another one's heading."""


def section(name: str) -> str:
    prefix = name.partition("/")[0] if "/" in name else ""
    return ALSO.get(prefix, prefix)


def table(names: list[str]) -> list[str]:
    lines = ["| metric | unit | meaning |", "|---|---|---|"]
    for name in names:
        meaning = METRICS[name].meaning.replace("|", "\\|")
        lines.append(f"| `{name}` | {METRICS[name].unit} | {meaning} |")
    return [*lines, ""]


def figures() -> list[str]:
    """What objectives log besides their loss."""
    lines = ["`objective/loss/<objective>` is a term's share of the loss. Objectives log besides:", ""]
    lines += ["| objective | figures |", "|---|---|"]
    for name, definition in sorted(REGISTRY.items()):
        batch = random_batch(name)
        _, found = definition.loss(batch.logps(*batch.leaves()), observe(name, batch))
        if found:
            lines.append(f"| `{name}` | {', '.join(f'`objective/{name}/{figure}`' for figure in found)} |")
    return [*lines, ""]


def prometheus() -> list[str]:
    lines = [
        "## Prometheus",
        "",
        "On Ray's metrics port, with the label `run` besides those named; a lost process takes",
    ]
    lines += ["its gauges with it. [deploy.md](deploy.md#metrics-dashboard-alerts) has dashboard and alerts.", ""]
    lines += ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in EXPORTED:
        names = ", ".join(f"`{name}`" for name in metric.exported)
        lines.append(f"| {names} | {metric.kind} | {', '.join(metric.labels)} | {metric.meaning} |")
    return lines


def render() -> str:
    lines = []
    for key, title in SECTIONS.items():
        lines += [f"## {title}", "", *table([name for name in METRICS if section(name) == key])]
        if key == "objective":
            lines += figures()
    if strange := [name for name in METRICS if section(name) not in SECTIONS]:
        raise ValueError(f"metrics under no heading of the page: {', '.join(strange)}")
    return HEAD + "\n" + "\n".join([*lines, *prometheus()]) + "\n"


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
    print(FILE)
