"""What several objectives share: the chosen response's likelihood, and exponentials that stay finite."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from preference.objectives.base import PairLogps

NllWeight = Annotated[float, Field(ge=0, description="Weight of the chosen response's negative log-likelihood.")]
Normalise = Annotated[bool, Field(description="Divide that negative log-likelihood by the response's tokens.")]

CAP = 20.0
"""Where ``bounded_exp`` leaves the exponential: its slope there, 5e8, still has a square that fits fp32."""


def nll(logps: PairLogps, normalise: bool) -> Tensor:
    """-log pi(chosen), [P] nats; a token's on average where ``normalise``."""
    return -logps.chosen / logps.chosen_len if normalise else -logps.chosen


def mean_gap(logps: PairLogps) -> Tensor:
    """r_chosen / len_chosen - r_rejected / len_rejected, [P] nats a token."""
    return logps.chosen_ratio / logps.chosen_len - logps.rejected_ratio / logps.rejected_len


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, any shape.

    expm1 keeps the digits that 1 - exp(x) loses near 0. A probability that rounds to 1 (x = 0) is taken as 1 - 1e-7,
    fp32's nearest: the logarithm is -inf there.
    """
    return torch.log(-torch.expm1(x.clamp(max=-1e-7)))


def bounded_exp(x: Tensor) -> Tensor:
    """exp(x) up to x = ``CAP``, its tangent past it: finite, increasing and with a gradient everywhere."""
    capped = x.clamp(max=CAP).exp()
    return torch.where(x > CAP, math.exp(CAP) * (1 + x - CAP), capped)
