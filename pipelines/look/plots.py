"""What a run tells about itself, whatever tracks it: metrics by name. ``pipelines.look.figures`` draws them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from preference.reports import EvalReport, SampleRow, StepReport, TrainMetrics
from preference.types import Fate

History = Mapping[str, Mapping[int, float]]

_STAGES = ("sample", "judge", "pair", "reference", "probe", "train", "publish", "load", "refresh", "checkpoint")
_FATES = {
    Fate.TRAINED: "trained on",
    Fate.TIED: "whose best and worst candidate were too close to call",
    Fate.IDENTICAL: "whose candidates were all the same text",
    Fate.UNFINISHED: "with too few finished candidates left",
    Fate.UNOPPOSED: "without a response of an opponent to pair with",
    Fate.JUDGE_FAILED: "whose judgements failed",
    Fate.ABSTAINED: "the judge declined to rank",
    Fate.WAITING: "waits for people's labels",
    Fate.STALE: "dropped because their candidates were too old",
    Fate.TOO_LONG: "left out as too long",
}
_FIRST_JUDGE = {
    "eval/win_rate": "Held-out win rate against the initial policy, ties count half (judge trained on)",
    "eval/win_rate_low": "Lower end of its Wilson 95% interval",
    "eval/win_rate_high": "Upper end of its Wilson 95% interval",
    "eval/win_rate_length_controlled": "Win rate at equal length",
    "eval/score_before": "Mean held-out judge score of the initial policy",
    "eval/score_after": "Mean held-out judge score of the current policy",
}

METRICS: dict[str, str] = {
    "rewards/chosen": "Implicit reward of chosen responses: beta x log-ratio to the reference, nats",
    "rewards/rejected": "Implicit reward of rejected responses, nats",
    "rewards/accuracies": "Share of pairs whose chosen response has the higher implicit reward",
    "rewards/margins": "Implicit reward of chosen minus rejected, nats",
    "logps/chosen": "Log-probability of chosen responses under the policy, summed over tokens, nats",
    "logps/rejected": "Log-probability of rejected responses, summed over tokens, nats",
    "loss": "Training objective, mean over pairs",
    "grad_norm": "Global gradient norm before clipping",
    "lr": "Learning rate of the step",
    "objective/kl": "KL to the reference on fresh held-out samples, nats per response",
    "objective/entropy": "Mean -log pi of sampled responses, nats per response",
    "objective/scores": "Mean judge score of every sampled candidate",
    "objective/scores_std": "Standard deviation of those scores",
    "objective/<name>": "Further figures of the chosen objective",
    "inspect/<name>": "What `rondo inspect` measured on the pairs of the whole run",
    "opponents/<name>": "Win rate against an opponent (ties half), games, weight loads, unusable responses",
    "probe/score": "Mean judge score of fresh samples on held-out prompts: free of pair selection",
    "response/length": "Mean sampled response length, tokens",
    "response/missing_eos": "Share of sampled responses cut off at the token limit",
    "policy/age": "Mean age of the trained pairs' sampling policy, in versions",
    "policy/age_max": "Oldest trained pair, in versions",
    "mismatch/logprob": "Mean |sampler - trainer| log-probability per token, nats",
    "pairs/trained": "Pairs trained on in the step",
    "pairs/tied": "Prompts that made no pair because of a tie",
    **{f"prompts/{fate}": f"Prompts {meaning}" for fate, meaning in _FATES.items()},
    "judge/judgements": "Ratings, verdicts and failures of the iteration",
    "judge/ties": "Share of the verdicts that are ties",
    "judge/flips": "Share of the verdicts whose two orders contradict each other",
    "judge/abstained": "Judgements that the judge abstained from",
    "judge/failed": "Judgements that failed in the iteration",
    "judge/cost": "What the iteration's judgements cost",
    "judge/seconds": "Mean time of a judgement, s",
    "judge/overruled": "Verdicts that another judge's replaced: escalated or audited",
    "judge/agreement": "Of these, how often both judges name the same side, ties left out",
    "judge/kappa": "Of these, Cohen's kappa",
    "judge/longest": "How often the longer of two responses won",
    **{f"time/{stage}": f"Wall time of stage {stage}, overlap with others included, s" for stage in _STAGES},
    **{f"tokens_per_s/{stage}": f"Tokens per second of stage {stage}" for stage in _STAGES},
    "time/iteration": "Wall time of the iteration, s",
    "log_ratio/chosen": "Mean log-ratio of chosen responses to the reference, nats; it falls under displacement",
    "log_ratio/rejected": "Mean log-ratio of rejected responses to the reference, nats",
    "kl/trained": "Mean log-ratio of all trained responses, nats; estimates KL where the policy itself sampled them",
    "response/length_ratio": "Mean tokens of chosen responses over mean tokens of rejected ones",
    "batch/waiting": "Share of the trainer's time that ranks wait for a longer cell, if time goes with tokens",
    "heldout/loss": "Loss on the held-out items",
    "heldout/accuracies": "Share of held-out pairs whose chosen response has the higher reward",
    "heldout/accuracies_low": "Lower end of its Wilson 95% interval",
    "heldout/accuracies_high": "Upper end of its Wilson 95% interval",
    "heldout/margins": "Reward margin of held-out pairs",
    "heldout/logps_chosen": "Summed log-prob of held-out chosen responses, nats",
    **_FIRST_JUDGE,
    **{f"{name}_second": f"The same by the second judge: {name}" for name in _FIRST_JUDGE},
    "eval/length_before": "Mean held-out response length of the initial policy, tokens",
    "eval/length_after": "Mean held-out response length of the current policy, tokens",
    "eval/kl": "KL to the reference over all held-out answers, nats per response",
}
"""Every metric of a run and its meaning; nothing outside it is logged. The docs' table is made from it."""


def step_metrics(report: StepReport) -> dict[str, float]:
    """A step's metrics by MLflow name. What was not measured (no probe, step skipped) is absent, never zero."""
    sample, train = report.sample, report.train
    values: dict[str, float] = {
        "pairs/trained": train.items if train else 0,
        "pairs/tied": report.fates.get(Fate.TIED, 0),
        "time/iteration": report.seconds,
    }
    values |= {f"prompts/{fate}": report.fates.get(fate, 0) for fate in Fate}
    if sample:
        values |= {
            "objective/entropy": sample.entropy,
            "objective/scores": sample.score,
            "objective/scores_std": sample.score_std,
            "response/length": sample.length,
            "response/missing_eos": sample.missing_eos,
            **{f"judge/{name}": value for name, value in asdict(sample.judge).items()},
        }
    if sample and sample.opponents is not None:
        values |= {f"opponents/{f.player}/win_rate": f.win_rate for f in sample.opponents.faced}
        values |= {f"opponents/{f.player}/games": f.games for f in sample.opponents.faced}
        values |= {"opponents/loads": sample.opponents.loads, "opponents/unusable": sample.opponents.unusable}
    values |= {f"time/{stage.name}": stage.seconds for stage in report.stages}
    values |= {f"tokens_per_s/{stage.name}": stage.tokens_per_s for stage in report.stages if stage.tokens}
    if report.probe:
        values |= {"objective/kl": report.probe.kl, "probe/score": report.probe.score}
    if report.ages:
        values |= {"policy/age": sum(report.ages) / len(report.ages), "policy/age_max": max(report.ages)}
    if train:
        values |= {
            "rewards/chosen": train.rewards_chosen,
            "rewards/rejected": train.rewards_rejected,
            "rewards/accuracies": train.rewards_accuracies,
            "rewards/margins": train.rewards_margins,
            "logps/chosen": train.logps_chosen,
            "logps/rejected": train.logps_rejected,
            "loss": train.loss,
            "grad_norm": train.grad_norm,
            "lr": train.lr,
            "mismatch/logprob": train.mismatch,
            "log_ratio/chosen": train.log_ratio_chosen,
            "log_ratio/rejected": train.log_ratio_rejected,
            "kl/trained": train.kl,
            "response/length_ratio": train.length_ratio,
            "batch/waiting": train.waiting,
        }
        # A scalar that shares a fixed name ("kl") must not pass for the held-out measurement.
        values |= {f"objective/{k}": v for k, v in train.scalars.items() if f"objective/{k}" not in METRICS}
    return _defined(values)


def heldout_metrics(metrics: TrainMetrics) -> dict[str, float]:
    """Loss and rewards on held-out items by MLflow name; what is not defined is absent."""
    low, high = metrics.accuracy_interval
    values = {
        "heldout/loss": metrics.loss,
        "heldout/accuracies": metrics.rewards_accuracies,
        "heldout/accuracies_low": low,
        "heldout/accuracies_high": high,
        "heldout/margins": metrics.rewards_margins,
        "heldout/logps_chosen": metrics.logps_chosen,
    }
    return _defined(values)


def _defined(values: Mapping[str, float]) -> dict[str, float]:
    """Without what is not defined, such as accuracies of single responses."""
    return {name: value for name, value in values.items() if not math.isnan(value)}


def eval_metrics(report: EvalReport) -> dict[str, float]:
    """An evaluation's metrics by MLflow name; the second judge's carry the suffix ``_second``."""
    values = {
        "eval/length_before": report.length_before,
        "eval/length_after": report.length_after,
        "eval/kl": report.kl,
    }
    for judged, suffix in zip(report.judges, ("", "_second"), strict=False):
        values |= {
            f"eval/win_rate{suffix}": judged.win_rate.rate,
            f"eval/win_rate_low{suffix}": judged.win_rate.low,
            f"eval/win_rate_high{suffix}": judged.win_rate.high,
            f"eval/win_rate_length_controlled{suffix}": judged.length_controlled,
            f"eval/score_before{suffix}": judged.score_before,
            f"eval/score_after{suffix}": judged.score_after,
        }
    return _defined(values)


def is_known(name: str) -> bool:
    """Whether METRICS gives ``name`` a meaning; ``<name>`` in a key stands for whatever comes there."""
    return name in METRICS or f"{name.partition('/')[0]}/<name>" in METRICS


def history_of(steps: Sequence[StepReport], evaluations: Sequence[EvalReport]) -> dict[str, dict[int, float]]:
    """``{metric name: {step: value}}``: what figures are drawn from, and what MLflow gives back."""
    history: dict[str, dict[int, float]] = {}
    measured = [(s.step, step_metrics(s)) for s in steps] + [(e.step, eval_metrics(e)) for e in evaluations]
    for step, values in measured:
        for name, value in values.items():
            history.setdefault(name, {})[step] = value
    return history


def repetition(before: Sequence[SampleRow], after: Sequence[SampleRow]) -> tuple[float, float] | None:
    """Share of three-word phrases that occur more than once, in equally many responses of both; None without any."""
    shares = []
    for rows in (before, after):
        phrases: Counter[tuple[str, ...]] = Counter()
        for row in rows[: min(len(before), len(after))]:  # a larger pool repeats more
            words = row.response.lower().split()
            phrases.update(zip(words, words[1:], words[2:], strict=False))
        if not phrases:
            return None
        shares.append(sum(n for n in phrases.values() if n > 1) / phrases.total())
    return shares[0], shares[1]
