"""What is said in words: an iteration in one line, what an evaluation shows, and model text made harmless."""

from __future__ import annotations

import math

from preference.reports import EvalReport, Judged, OpponentMetrics, StepReport, TrainMetrics
from preference.types import Fate

SHORT = {"reference": "ref"}  # names of stages where room is scarce
_EXAMPLE_CHARS = 280


def step_line(report: StepReport, total_steps: int, width: int | None = None) -> str:
    """One iteration in one line; with ``width`` the least important parts go until it fits."""
    train, sample, probe = report.train, report.sample, report.probe
    unused = [f"{n} {fate.value.replace('_', ' ')}" for fate, n in report.fates.items() if n and fate != Fate.TRAINED]
    parts = [(0, f"step {report.step}/{total_steps}"), (1, f"v{report.version}")]
    parts.append((0, _counted(train) if train else "skipped, no pair to train on"))
    parts.append((3 if train else 0, f"({', '.join(unused)})" if unused else ""))
    if sample:
        parts.append((0, f"{sample.judge.failed} judge failures" if sample.judge.failed else ""))
        parts.append((0, "" if math.isnan(sample.score) else f"reward {sample.score:+.2f}"))
        parts.append((2, against(sample.opponents)))
    if probe:
        parts += [(1, f"held-out {probe.score:+.2f}"), (1, "" if math.isnan(probe.kl) else f"KL {probe.kl:.1f}")]
    if train:
        parts.append((1, f"loss {train.loss:.2f}"))
        parts.append((2, "" if math.isnan(train.rewards_accuracies) else f"acc {train.rewards_accuracies:.2f}"))
        parts += [(4, f"mismatch {train.mismatch:.3f}" if not math.isnan(train.mismatch) else "")]
    parts += [
        (3, f"len {sample.length:.0f}" if sample else ""),
        (3, f"age {max(report.ages)}" if any(report.ages) else ""),
    ]
    stages = []
    for stage in report.stages:
        speed = f" {stage.tokens_per_s:.0f} tok/s" if stage.tokens else ""
        short = f"{SHORT.get(stage.name, stage.name)} {stage.seconds:.1f}s{speed}"
        stages.append((4 if stage.seconds > 0.1 * report.seconds else 5, short))
    for keep in range(5, -1, -1):
        shown = "  ".join(text for priority, text in parts if text and priority <= keep).replace("  (", " (")
        timed = " · ".join(text for priority, text in stages if priority <= keep)
        line = " | ".join(part for part in (shown, timed, f"{report.seconds:.1f}s") if part)
        if width is None or len(line) <= width:
            break
    return line


def against(opponents: OpponentMetrics | None) -> str:
    """How often the policy won against each player; nothing without any."""
    faced = opponents.faced if opponents is not None else ()
    rates = [f"{f.player} {f.win_rate:.2f}" for f in faced if f.games and "/" not in f.player]
    return f"wins against {', '.join(rates)}" if rates else ""


def _counted(train: TrainMetrics) -> str:
    """How much was trained on: pairs have accuracies, single responses have none."""
    kind = "response" if math.isnan(train.rewards_accuracies) else "pair"
    return f"{train.items} {kind}{'s'[: train.items != 1]}"


def at_kl(report: EvalReport) -> str:
    """At which distance from the reference; objectives without one leave it unknown."""
    return "at a KL that nothing measures (no reference)" if math.isnan(report.kl) else f"at KL {report.kl:.1f} nats"


def over_optimisation(report: EvalReport, repeated: tuple[float, float] | None = None) -> str:
    """What the numbers say, and no more, about whether the judge was pleased at the expense of the answers.

    ``repeated``: share of repeated three-word phrases in the first and last training samples.
    """
    first, *others = report.judges
    w, kl = first.win_rate, at_kl(report)
    ours = f"{first.judge}, {'the judge trained on' if first.trained_on else 'whom no pair comes from'},"
    theirs = f"{others[0].judge} ({others[0].win_rate.rate:.2f})" if others else ""
    if w.high < 0.5:
        said = f"Worse: {ours} prefers the initial policy ({w.rate:.2f}) {kl}."
    elif w.low <= 0.5:
        said = f"No gain is shown: the interval of {ours} includes 0.5 ({w.rate:.2f}) {kl}."
    elif not others and not first.trained_on:
        said = f"A gain by an independent judge: {ours} prefers the new answers ({w.rate:.2f}) {kl}."
    elif not others:
        said = f"Only {ours} was asked: its win rate of {w.rate:.2f} {kl} cannot be told from over-optimisation of it; "
        said += "evaluation.judge adds an independent judge."
    elif others[0].win_rate.high < 0.5:
        said = f"Over-optimised: {ours} prefers the new answers ({w.rate:.2f}), {theirs} the initial ones, {kl}."
    elif others[0].win_rate.low <= 0.5:
        said = f"Suspect: {ours} sees a gain ({w.rate:.2f}) that {theirs} does not confirm, {kl}."
    elif others[0].win_rate.high < w.low:
        said = (
            f"A gain that {ours} sees larger ({w.rate:.2f}) than {theirs}, {kl}: part of it may be that judge's alone."
        )
    else:
        said = f"No sign of over-optimisation: {ours} ({w.rate:.2f}) and {theirs} both prefer the new answers {kl}."
    change = report.length_after / report.length_before - 1 if report.length_before else 0.0
    if abs(change) > 0.2:
        longer = "longer" if change > 0 else "shorter"
        said += (
            f" Answers are {abs(change):.0%} {longer}; at equal length the win rate is {first.length_controlled:.2f}."
        )
    if repeated and repeated[1] > repeated[0] + 0.1:
        said += f" Repeated three-word phrases rose from {repeated[0]:.0%} to {repeated[1]:.0%} of sampled text."
    return said


def judge_row(judged: Judged) -> tuple[str, ...]:
    w, before, after = judged.win_rate, judged.score_before, judged.score_after
    rate, counts = f"{w.rate:.3f} [{w.low:.3f}, {w.high:.3f}]", f"{w.wins} / {w.ties} / {w.losses}"
    return judged.judge, rate, counts, f"{judged.length_controlled:.3f}", f"{before:+.2f} -> {after:+.2f}"


def plain(text: str) -> str:
    """Model text may hold escape sequences, lone surrogates or right-to-left overrides: none reaches the terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def clip(text: str) -> str:
    text = " ".join(plain(text).split())
    return text if len(text) <= _EXAMPLE_CHARS else text[: _EXAMPLE_CHARS - 3] + "..."


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
