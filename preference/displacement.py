"""Likelihood displacement: a policy that learns its margins by making *both* answers less likely."""

from __future__ import annotations

from preference.reports import TrainMetrics

_STEPS = 5  # single batches differ too much to say anything
_NATS = 1.0  # a response's log-prob; less is noise


class Displacement:
    """Compares the chosen responses' log-ratio to the reference, and the margin, over a window of steps.

    Source: Razin et al., "Unintentional Unalignment", arXiv 2410.08847.
    """

    def __init__(self) -> None:
        self._chosen: list[float] = []
        self._margins: list[float] = []
        self._warned = False

    def update(self, step: int, metrics: TrainMetrics) -> str | None:
        """A warning, once: chosen responses lost likelihood over two windows of steps while margins rose."""
        self._chosen.append(metrics.log_ratio_chosen)
        self._margins.append(metrics.rewards_margins)
        if self._warned or len(self._chosen) < 2 * _STEPS:
            return None
        before, after = _mean(self._chosen[-2 * _STEPS : -_STEPS]), _mean(self._chosen[-_STEPS:])
        rising = _mean(self._margins[-_STEPS:]) > _mean(self._margins[-2 * _STEPS : -_STEPS])
        if not (after < -_NATS and after < before and rising):  # also false for nan: no reference
            return None
        self._warned = True
        return (
            f"step {step}: likelihood displacement: chosen responses are {-after:.1f} nats less likely than under the "
            f"reference ({-before:.1f} some steps ago) while margins rise; if that is not wanted, try objective dpop, "
            f"a mix of dpo and sft, or a higher beta"
        )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
