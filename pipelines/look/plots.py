"""What a run tells about itself, whatever tracks it: metrics by name (their meaning: ``pipelines.look.dictionary``)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from pipelines.look.dictionary import METRICS
from preference.reports import EvalReport, SampleRow, StepReport, TrainMetrics
from preference.types import Fate

History = Mapping[str, Mapping[int, float]]


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
