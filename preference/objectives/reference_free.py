"""Objectives that need no reference: they look at the policy's log-probs alone."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from preference.objectives.base import Figures, LabelLogps, PairLogps, objective
from preference.objectives.terms import NllWeight, Normalise, log1mexp, nll

Scale = Annotated[float, Field(gt=0, description="Multiplies the gap between log-probs.")]
Gamma = Annotated[float, Field(ge=0, description="Reward by which the chosen response should win.")]
Margin = Annotated[float, Field(ge=0, description="Nats by which the chosen response should win.")]
OddsWeight = Annotated[float, Field(ge=0, description="Weight of the odds-ratio term.")]


@objective("sft", paper="2203.02155", data="labels", reference=False, normaliser="tokens")
def sft(logps: LabelLogps, stats: None) -> tuple[Tensor, Figures]:
    """Supervised fine-tuning, [S] (e.g. Ouyang et al., arXiv 2203.02155): NLL of desirable responses, 0 for others."""
    return torch.where(logps.desirable, -logps.policy, 0.0), {}


@objective("simpo", paper="2405.14734", reference=False, reward="mean_logp")
def simpo(logps: PairLogps, stats: None, *, beta: Scale = 2.0, gamma: Gamma = 1.0) -> tuple[Tensor, Figures]:
    """Simple Preference Optimization, [P] (Meng et al., arXiv 2405.14734, eq. 6).

    -log sigmoid(beta (logp_chosen / len_chosen - logp_rejected / len_rejected) - gamma). gamma is the paper's, outside
    beta, as is TRL's ``simpo_gamma``; the authors' code asks for ``gamma_beta_ratio`` = gamma / beta instead.
    """
    gap = logps.chosen / logps.chosen_len - logps.rejected / logps.rejected_len
    return -F.logsigmoid(beta * gap - gamma), {}


@objective("cpo", paper="2401.08417", reference=False)
def cpo(
    logps: PairLogps, stats: None, *, beta: Scale = 0.1, alpha: NllWeight = 1.0, normalise: Normalise = True
) -> tuple[Tensor, Figures]:
    """Contrastive Preference Optimization, [P] (Xu et al., arXiv 2401.08417).

    -log sigmoid(beta (logp_chosen - logp_rejected)) + alpha NLL(chosen). The equation's NLL is the response's; the
    authors' code and TRL take a token's on average, and that is the default. (They average over a batch's tokens, here
    over each response's, so that pairs count alike and a batch's split does not matter.)
    """
    likelihood = nll(logps, normalise)
    losses = -F.logsigmoid(beta * (logps.chosen - logps.rejected)) + alpha * likelihood
    return losses, {"nll": likelihood.detach()}


@objective("orpo", paper="2403.07691", reference=False, reward="mean_logp")
def orpo(logps: PairLogps, stats: None, *, odds_weight: OddsWeight = 0.1) -> tuple[Tensor, Figures]:
    """Odds Ratio Preference Optimization, [P] (Hong et al., arXiv 2403.07691).

    NLL(chosen) - l log sigmoid(log odds_chosen - log odds_rejected), odds = p / (1 - p), log p = logp / len, and the
    NLL a token's too: fine-tuning and preference in a single stage. l = ``odds_weight``, the paper's lambda.
    """
    chosen, rejected = logps.chosen / logps.chosen_len, logps.rejected / logps.rejected_len
    log_odds_ratio = (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))
    losses = -chosen - odds_weight * F.logsigmoid(log_odds_ratio)
    return losses, {"nll": -chosen.detach(), "log_odds_ratio": log_odds_ratio.detach()}


@objective("slic", paper="2305.10425", reference=False)
def slic(
    logps: PairLogps, stats: None, *, margin: Margin = 1.0, alpha: NllWeight = 0.1, normalise: Normalise = False
) -> tuple[Tensor, Figures]:
    """Sequence Likelihood Calibration, SLiC-HF, [P] (Zhao et al., arXiv 2305.10425).

    relu(margin - logp_chosen + logp_rejected) + alpha NLL. As in HALOs, whose defaults these are, the NLL is the chosen
    response's; the paper takes it on the fine-tuning targets, which preference data does not have.
    """
    likelihood = nll(logps, normalise)
    losses = F.relu(margin - logps.chosen + logps.rejected) + alpha * likelihood
    return losses, {"nll": likelihood.detach()}
