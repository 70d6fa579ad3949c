"""DPO with another curve: what is done to the gap between log-ratios, or to each log-ratio, is not log sigmoid."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from preference.objectives.base import Beta, Figures, PairLogps, objective
from preference.objectives.terms import bounded_exp, mean_gap

Average = Annotated[bool, Field(description="Compare log-ratios a token; False: summed over the response.")]
ExoSmoothing = Annotated[float, Field(gt=0, lt=0.5, description="Probability the target gives to the rejected one.")]
Tau = Annotated[float, Field(gt=0, le=1, description="Width in beta D of the change from logistic to exponential.")]
Divergence = Annotated[
    Literal["reverse_kl", "forward_kl", "js", "alpha"],
    Field(description="Divergence from the reference that is bounded; reverse KL is DPO."),
]
DivergenceAlpha = Annotated[
    float, Field(gt=0, lt=1, description="For the alpha-divergence: towards 0 is reverse KL, towards 1 forward KL.")
]


@objective("hinge", paper="2309.06657")
def hinge(logps: PairLogps, stats: None, *, beta: Beta = 0.1) -> tuple[Tensor, Figures]:
    """Hinge on DPO's gap, [P]: RSO's hinge-norm (Liu et al., arXiv 2309.06657). relu(1 - beta D)."""
    return F.relu(1 - beta * logps.gap), {}


@objective("ipo", paper="2310.12036", reward="mean_ratio")
def ipo(logps: PairLogps, stats: None, *, beta: Beta = 0.1, average: Average = True) -> tuple[Tensor, Figures]:
    """Identity Preference Optimization, [P] (Azar et al., arXiv 2310.12036, eq. 17; beta is its tau).

    (gap - 1 / (2 beta))^2, gap = r_chosen / len_chosen - r_rejected / len_rejected. Averaging is not in the paper but
    is what its authors ran, and what HALOs and TRL do; ``average`` = False takes D, as the equation reads and as the
    original repository and OpenRLHF have it. A beta for one is far off for the other.
    """
    gap = mean_gap(logps) if average else logps.gap
    return (gap - 1 / (2 * beta)) ** 2, {}


@objective("exo", paper="2402.00856")
def exo(
    logps: PairLogps, stats: None, *, beta: Beta = 0.1, label_smoothing: ExoSmoothing = 1e-3
) -> tuple[Tensor, Figures]:
    """Efficient Exact Optimization on pairs, [P] (Ji et al., arXiv 2402.00856, eq. 16).

    KL(q || [1 - e, e]), q = [sigmoid(beta D), sigmoid(-beta D)]: the reverse of the KL that cDPO minimises. e > 0: a
    target of 0 is infinitely far.
    """
    logits = beta * logps.gap
    chosen = logits.sigmoid() * (F.logsigmoid(logits) - math.log1p(-label_smoothing))
    rejected = (-logits).sigmoid() * (F.logsigmoid(-logits) - math.log(label_smoothing))
    return chosen + rejected, {}


@objective("discopop", paper="2406.08414")
def discopop(logps: PairLogps, stats: None, *, beta: Beta = 0.1, tau: Tau = 0.05) -> tuple[Tensor, Figures]:
    """DiscoPOP, log-ratio modulated loss, [P] (Lu et al., arXiv 2406.08414, eq. 5).

    -(1 - m) log sigmoid(x) + m exp(-x), x = beta D, m = sigmoid(x / tau). m exp(-x) is evaluated as
    exp(log m - x): apart, the two are 0 and inf at a large negative x. tau <= 1 keeps their product bounded.
    """
    logits = beta * logps.gap
    logistic = -(-logits / tau).sigmoid() * F.logsigmoid(logits)
    exponential = torch.exp(F.logsigmoid(logits / tau) - logits)
    return logistic + exponential, {}


@objective("f_dpo", paper="2309.16240")
def f_dpo(
    logps: PairLogps,
    stats: None,
    *,
    beta: Beta = 0.1,
    divergence: Divergence = "reverse_kl",
    alpha: DivergenceAlpha = 0.5,
) -> tuple[Tensor, Figures]:
    """f-DPO, [P] (Wang et al., arXiv 2309.16240).

    -log sigmoid(beta (f'(u_chosen) - f'(u_rejected))), u = pi / pi_ref = exp(r). f'(u) less its constants, which
    cancel: reverse KL log u; forward KL -1 / u; Jensen-Shannon log(2u / (1 + u)); alpha (1 - u^-alpha) / alpha.
    ``alpha`` is the paper's; the coefficient of recent TRL is 1 - alpha. Past 20 nats the exponentials go on as
    their tangents (``bounded_exp``), where the loss is in the millions already.
    """
    scores = [_derivative(ratio, divergence, alpha) for ratio in (logps.chosen_ratio, logps.rejected_ratio)]
    return -F.logsigmoid(beta * (scores[0] - scores[1])), {}


def _derivative(ratio: Tensor, divergence: str, alpha: float) -> Tensor:
    """f'(exp(r)) up to a constant, the shape of ``ratio``."""
    if divergence == "reverse_kl":
        return ratio
    if divergence == "forward_kl":
        return -bounded_exp(-ratio)
    if divergence == "js":
        return F.logsigmoid(ratio)  # and ln 2
    return -bounded_exp(-alpha * ratio) / alpha
