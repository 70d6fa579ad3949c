"""Objectives on log sigmoid of the gap between a pair's log-ratios: DPO and its nearest kin."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from preference.objectives.base import Beta, Figures, PairLogps, Smoothing, Tokens, objective
from preference.objectives.terms import NllWeight, Normalise, nll

Penalty = Annotated[float, Field(ge=0, description="Nats taken off the gap per nat the chosen response lost.")]


@objective("dpo", paper="2305.18290")
def dpo(logps: PairLogps, stats: None, *, beta: Beta = 0.1, label_smoothing: Smoothing = 0.0) -> tuple[Tensor, Figures]:
    """Direct Preference Optimization, [P] (Rafailov et al., arXiv 2305.18290, eq. 7).

    -(1 - e) log sigmoid(beta D) - e log sigmoid(-beta D); e = ``label_smoothing`` > 0 is conservative DPO (cDPO).
    With pi == pi_ref it is ln 2 for every e.
    """
    logits = beta * logps.gap
    losses = -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)
    return losses, {}


@objective("robust", paper="2403.00409")
def robust(
    logps: PairLogps, stats: None, *, beta: Beta = 0.1, label_smoothing: Smoothing = 0.1
) -> tuple[Tensor, Figures]:
    """Robust DPO, [P] (Chowdhury et al., arXiv 2403.00409).

    [-(1 - e) log sigmoid(beta D) + e log sigmoid(-beta D)] / (1 - 2e): where labels are flipped with probability e its
    mean is that of DPO on clean labels. Unlike cDPO's mixture the second term has the opposite sign, so the loss can
    be negative; at e = 1/2 labels say nothing and it does not exist.
    """
    logits = beta * logps.gap
    losses = -(1 - label_smoothing) * F.logsigmoid(logits) + label_smoothing * F.logsigmoid(-logits)
    return losses / (1 - 2 * label_smoothing), {}


@objective("dpop", paper="2402.13228")
def dpop(logps: PairLogps, stats: None, *, beta: Beta = 0.3, penalty: Penalty = 50.0) -> tuple[Tensor, Figures]:
    """DPO-Positive (Smaug), [P] (Pal et al., arXiv 2402.13228).

    -log sigmoid(beta (D - l relu(-r_chosen))), l = ``penalty``: a chosen response that became less likely than under
    the reference pays for it. The paper's placement: inside the sigmoid and inside beta. Others circulate (outside
    beta, outside the sigmoid); with them the paper's l = 50 means something else.
    """
    logits = beta * (logps.gap - penalty * F.relu(-logps.chosen_ratio))
    return -F.logsigmoid(logits), {}


@objective("rpo", paper="2405.16436")
def rpo(
    logps: PairLogps, stats: None, *, beta: Beta = 0.1, alpha: NllWeight = 1.0, normalise: Normalise = True
) -> tuple[Tensor, Figures]:
    """DPO + alpha NLL(chosen), [P]: RPO (Liu et al., arXiv 2405.16436), iterative RPO (Pang et al., arXiv 2404.19733).

    With ``normalise`` the NLL is a token's on average, as in iterative RPO, whose alpha = 1 is the default; without it
    is the response's, as in RPO (which writes alpha as eta beta). Iterative RPO's equation has its alpha on the DPO
    term; at 1, the value it uses, that is the same, and here it stands where TRL and others have it.
    """
    likelihood = nll(logps, normalise)
    return -F.logsigmoid(beta * logps.gap) + alpha * likelihood, {"nll": likelihood.detach()}


@objective("wpo", paper="2406.11827", collision=True)
def wpo(logps: PairLogps, stats: None, *, beta: Beta = 0.1) -> tuple[Tensor, Figures]:
    """Weighted Preference Optimization, [P] (Zhou et al., arXiv 2406.11827, eq. 2).

    min(1, w_chosen w_rejected) DPO: off-policy pairs count by how likely the policy is to write them. Sampled
    alignment, the authors' choice: w = exp(mean over tokens of log pi(token) - log sum_v pi(v)^2), so that a response
    sampled from the policy weighs about 1 however sure the policy is. The weight carries no gradient and the product
    is clamped, both as in the authors' code; not each factor, and not the unclamped product that TRL has.
    """
    aligned = _aligned(logps.chosen_tokens) + _aligned(logps.rejected_tokens)
    weight = aligned.clamp(max=0).exp()
    return -weight * F.logsigmoid(beta * logps.gap), {"weight": weight}


def _aligned(tokens: Tokens) -> Tensor:
    """[S] mean over a response's tokens of log pi(token) - log sum_v pi(v)^2, without gradient."""
    return tokens.sums(tokens.policy.detach() - tokens.collision) / tokens.lengths
