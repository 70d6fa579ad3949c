"""Self-play: objectives derived from a game between policies, on who wrote a response and how surely it won."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from preference.objectives.base import Beta, Figures, PairLogps, Tokens, objective

Hard = Annotated[bool, Field(description="Take the label for certain (P = 1) instead of the judge's probability.")]
Optimism = Annotated[float, Field(ge=0, description="Weight of the reference's response, which it makes less likely.")]


@objective("sppo", paper="2405.00675")
def sppo(logps: PairLogps, stats: None, *, beta: Beta = 1e-3, hard: Hard = False) -> tuple[Tensor, Figures]:
    """Self-Play Preference Optimization, [P] (Wu et al., arXiv 2405.00675, eq. 4.7; beta is its 1 / eta).

    (r_chosen - (P - 1/2) / beta)^2 + (r_rejected + (P - 1/2) / beta)^2, P = the judge's P(chosen is better). Not
    halved, as in the paper and in TRL's ``sppo_hard``; the authors' code halves it.
    """
    target = (0.5 if hard else logps.probability - 0.5) / beta
    return (logps.chosen_ratio - target) ** 2 + (logps.rejected_ratio + target) ** 2, {}


@objective("xpo", paper="2405.21046", reference_samples=True)
def xpo(logps: PairLogps, stats: None, *, beta: Beta = 0.1, alpha: Optimism = 1e-5) -> tuple[Tensor, Figures]:
    """Exploratory Preference Optimization, [P] (Xie et al., arXiv 2405.21046, algorithm 1).

    DPO + alpha log pi(y), y the pair's response that the reference wrote: making that less likely is the optimism that
    explores. A pair of which the reference wrote neither response (or both) is plain DPO.
    """
    chosen, rejected = logps.from_reference > 0, logps.from_reference < 0
    written = logps.chosen * chosen + logps.rejected * rejected
    return -F.logsigmoid(beta * logps.gap) + alpha * written, {}


@objective("nash_md", paper="2312.00886", own_samples=True)
def nash_md(logps: PairLogps, stats: None, *, beta: Beta = 0.1) -> tuple[Tensor, Figures]:
    """Nash mirror descent, [P] (Munos et al., arXiv 2312.00886).

    beta sum_t [r_t] log pi(y_t) - (P - 1/2) log pi(y): y is the policy's own response, P the judge's probability that
    it beats the other, which the mixture wrote; [r_t], its token's log-ratio, carries no gradient. So the gradient is
    REINFORCE's, 1/2 its baseline, and the value means nothing. KL is credited token by token, as TRL does; the paper
    has [r] log pi(y) for whole responses, of larger variance.

    The mixture is whoever plays for the reference: y is the response that ``from_reference`` does not name. Where it
    names neither, both are the policy's, and each is y in turn, at half weight.
    """
    own_chosen, own_rejected = (1 - logps.from_reference) / 2, (1 + logps.from_reference) / 2
    chosen = _reinforce(logps.chosen_tokens, logps.probability, beta)
    rejected = _reinforce(logps.rejected_tokens, 1 - logps.probability, beta)
    return own_chosen * chosen + own_rejected * rejected, {}


def _reinforce(tokens: Tokens, probability: Tensor, beta: float) -> Tensor:
    """[S] responses that win with ``probability`` [S]: the loss whose gradient is the policy gradient."""
    drift = (tokens.policy - tokens.reference).detach()
    return beta * tokens.sums(drift * tokens.policy) - (probability - 0.5) * tokens.sums(tokens.policy)
