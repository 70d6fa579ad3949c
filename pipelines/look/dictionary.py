"""Every metric of a run: its unit and what it means. Nothing outside it is logged; docs/metrics.md is made from it.

``pipelines.metrics`` is the same for Prometheus.
"""

from __future__ import annotations

from dataclasses import dataclass

from preference import diagnostics
from preference.types import Fate


@dataclass(frozen=True, slots=True)
class Measure:
    """What a number is: its unit (empty: a plain number), and its meaning in one sentence."""

    unit: str
    meaning: str


_STAGES = ("sample", "judge", "pair", "reference", "probe", "train", "publish", "load", "refresh", "checkpoint")
_FATES = {
    Fate.TRAINED: "trained on",
    Fate.TIED: "whose best and worst candidate were too close to call",
    Fate.IDENTICAL: "whose candidates were all the same text",
    Fate.UNFINISHED: "with too few finished candidates left",
    Fate.UNOPPOSED: "without a response of an opponent to pair with",
    Fate.JUDGE_FAILED: "whose judgements failed",
    Fate.ABSTAINED: "the judge declined to rank",
    Fate.WAITING: "that wait for people's labels",
    Fate.STALE: "dropped because their candidates were too old",
    Fate.TOO_LONG: "left out as too long",
}
_JUDGED = {
    "eval/win_rate": Measure("share", "Held-out win rate against the initial policy, ties count half"),
    "eval/win_rate_low": Measure("share", "Lower end of its Wilson 95% interval"),
    "eval/win_rate_high": Measure("share", "Upper end of its Wilson 95% interval"),
    "eval/win_rate_length_controlled": Measure("share", "Win rate at equal length"),
    "eval/score_before": Measure("score", "Mean held-out judge score of the initial policy"),
    "eval/score_after": Measure("score", "Mean held-out judge score of the current policy"),
}

METRICS: dict[str, Measure] = {
    "loss": Measure("", "Training objective, mean over items"),
    "grad_norm": Measure("", "Global gradient norm before clipping"),
    "lr": Measure("", "Learning rate of the step"),
    "rewards/chosen": Measure("nats", "Implicit reward of chosen responses: beta x log-ratio to the reference"),
    "rewards/rejected": Measure("nats", "Implicit reward of rejected responses"),
    "rewards/margins": Measure("nats", "Implicit reward of chosen minus rejected"),
    "rewards/accuracies": Measure("share", "Pairs whose chosen response has the higher implicit reward"),
    "logps/chosen": Measure("nats", "Log-probability of chosen responses under the policy, summed over tokens"),
    "logps/rejected": Measure("nats", "Log-probability of rejected responses, summed over tokens"),
    "log_ratio/chosen": Measure(
        "nats", "Mean log-ratio of chosen responses to the reference; falls under displacement"
    ),
    "log_ratio/rejected": Measure("nats", "Mean log-ratio of rejected responses to the reference"),
    "kl/trained": Measure(
        "nats", "Mean log-ratio of all trained responses; estimates KL where the policy sampled them"
    ),
    "objective/kl": Measure("nats", "KL to the reference on fresh held-out samples, per response"),
    "objective/entropy": Measure("nats", "Mean -log pi of sampled responses, per response"),
    "objective/scores": Measure("score", "Mean judge score of every sampled candidate"),
    "objective/scores_std": Measure("score", "Standard deviation of those scores"),
    "objective/<name>": Measure("", "Further figures of the chosen objective, and each term's share of the loss"),
    "probe/score": Measure("score", "Mean judge score of fresh samples on held-out prompts: free of pair selection"),
    "response/length": Measure("tokens", "Mean sampled response length"),
    "response/missing_eos": Measure("share", "Sampled responses cut off at the token limit"),
    "response/length_ratio": Measure("ratio", "Mean tokens of chosen responses over mean tokens of rejected ones"),
    "policy/age": Measure("versions", "Mean age of the trained pairs' sampling policy"),
    "policy/age_max": Measure("versions", "Oldest trained pair"),
    "mismatch/logprob": Measure("nats", "Mean |sampler - trainer| log-probability per token"),
    "pairs/trained": Measure("pairs", "Pairs (or labelled responses) trained on in the step"),
    "pairs/tied": Measure("prompts", "Prompts that made no pair because of a tie"),
    **{f"prompts/{fate}": Measure("prompts", f"Prompts {meaning}") for fate, meaning in _FATES.items()},
    "judge/judgements": Measure("judgements", "Ratings, verdicts and failures of the iteration"),
    "judge/ties": Measure("share", "Verdicts that are ties"),
    "judge/flips": Measure("share", "Verdicts whose two orders contradict each other"),
    "judge/abstained": Measure("judgements", "Judgements that the judge abstained from"),
    "judge/failed": Measure("judgements", "Judgements that failed in the iteration"),
    "judge/cost": Measure("currency", "What the iteration's judgements cost, in the currency of their prices"),
    "judge/seconds": Measure("s", "Mean time of a judgement"),
    "judge/overruled": Measure("verdicts", "Verdicts that another judge's replaced: escalated or audited"),
    "judge/agreement": Measure("share", "Of these, how often both judges name the same side, ties left out"),
    "judge/kappa": Measure("", "Of these, Cohen's kappa"),
    "judge/longest": Measure("share", "How often the longer of two responses won"),
    "opponents/<name>": Measure(
        "", "Win rate against an opponent (ties half), games, weight loads, unusable responses"
    ),
    "batch/waiting": Measure("share", "Trainer's time that ranks wait for a longer cell, if time goes with tokens"),
    "time/iteration": Measure("s", "Wall time of the iteration"),
    **{f"time/{stage}": Measure("s", f"Wall time of stage {stage}, overlap with others included") for stage in _STAGES},
    **{f"tokens_per_s/{stage}": Measure("tokens/s", f"Throughput of stage {stage}") for stage in _STAGES},
    "heldout/loss": Measure("", "Loss on the held-out items"),
    "heldout/accuracies": Measure("share", "Held-out pairs whose chosen response has the higher reward"),
    "heldout/accuracies_low": Measure("share", "Lower end of its Wilson 95% interval"),
    "heldout/accuracies_high": Measure("share", "Upper end of its Wilson 95% interval"),
    "heldout/margins": Measure("nats", "Reward margin of held-out pairs"),
    "heldout/logps_chosen": Measure("nats", "Summed log-probability of held-out chosen responses"),
    **_JUDGED,
    **{f"{name}_second": Measure(m.unit, f"{m.meaning}, by the second judge") for name, m in _JUDGED.items()},
    "eval/length_before": Measure("tokens", "Mean held-out response length of the initial policy"),
    "eval/length_after": Measure("tokens", "Mean held-out response length of the current policy"),
    "eval/kl": Measure("nats", "KL to the reference over all held-out answers, per response"),
    **{f"inspect/{name}": Measure("", meaning) for name, meaning in diagnostics.METRICS.items()},
}
"""By its name in MLflow; ``<name>`` stands for whatever comes there."""


def is_known(name: str) -> bool:
    """Whether METRICS gives ``name`` a meaning."""
    return name in METRICS or f"{name.partition('/')[0]}/<name>" in METRICS
