"""Objectives that hold each response against an anchor, not only against its partner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from preference.objectives.base import Beta, Figures, LabelLogps, Observed, PairLogps, objective

DesirableWeight = Annotated[float, Field(ge=0, description="Weight of desirable responses.")]
UndesirableWeight = Annotated[float, Field(ge=0, description="Weight of undesirable responses.")]


@objective("nca", paper="2402.05369")
def nca(logps: PairLogps, stats: None, *, beta: Beta = 0.1) -> tuple[Tensor, Figures]:
    """Noise Contrastive Alignment on pairs, [P] (Chen et al., arXiv 2402.05369).

    -log sigmoid(beta r_chosen) - log sigmoid(-beta r_chosen) / 2 - log sigmoid(-beta r_rejected) / 2.
    """
    chosen, rejected = beta * logps.chosen_ratio, beta * logps.rejected_ratio
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected), {}


@objective("apo_zero", paper="2408.06266")
def apo_zero(logps: PairLogps, stats: None, *, beta: Beta = 0.1) -> tuple[Tensor, Figures]:
    """Anchored Preference Optimization, zero, [P] (D'Oosterlinck et al., arXiv 2408.06266, eq. 7).

    1 - sigmoid(beta r_chosen) + sigmoid(beta r_rejected): chosen up, rejected down. For responses better than the
    model's own.
    """
    return (-beta * logps.chosen_ratio).sigmoid() + (beta * logps.rejected_ratio).sigmoid(), {}


@objective("apo_down", paper="2408.06266")
def apo_down(logps: PairLogps, stats: None, *, beta: Beta = 0.1) -> tuple[Tensor, Figures]:
    """Anchored Preference Optimization, down, [P] (D'Oosterlinck et al., arXiv 2408.06266, eq. 8).

    sigmoid(beta r_chosen) + 1 - sigmoid(beta D): both down, rejected further. For responses worse than the model's own.
    """
    return (beta * logps.chosen_ratio).sigmoid() + (-beta * logps.gap).sigmoid(), {}


@dataclass(frozen=True, slots=True)
class BcoStats:
    """Running mean of rewards beta r over every response of every step, and how many they were."""

    mean: float
    count: float


def bco_observe(batch: Observed, stats: BcoStats, *, beta: float) -> BcoStats:
    rewards = beta * torch.cat([batch.items.chosen_ratio, batch.items.rejected_ratio])
    count = stats.count + len(rewards)
    return BcoStats(stats.mean + (rewards.mean().item() - stats.mean) * len(rewards) / count, count)


@objective("bco", paper="2404.04656", observe=bco_observe, initial=BcoStats(0.0, 0.0))
def bco(logps: PairLogps, stats: BcoStats, *, beta: Beta = 0.1) -> tuple[Tensor, Figures]:
    """Binary Classifier Optimization on pairs, [P] (Jung et al., arXiv 2404.04656).

    -log sigmoid(beta r_chosen - d) - log sigmoid(-(beta r_rejected - d)), d = mean reward over all responses so far,
    this step's included. d is the paper's reward shift; it carries no gradient. Without the paper's density ratios
    for unlike prompts: the two responses of a pair share theirs.
    """
    chosen, rejected = beta * logps.chosen_ratio, beta * logps.rejected_ratio
    losses = -F.logsigmoid(chosen - stats.mean) - F.logsigmoid(stats.mean - rejected)
    return losses, {"delta": torch.full_like(losses, stats.mean)}


@dataclass(frozen=True, slots=True)
class KtoStats:
    """The reference point z, nats."""

    z: float


def kto_observe(
    batch: Observed, stats: KtoStats, *, beta: float, desirable_weight: float, undesirable_weight: float
) -> KtoStats:
    if not len(batch.mismatched):
        return stats
    return KtoStats(max(0.0, batch.mismatched.mean().item()))


@objective("kto", paper="2402.01306", data="labels", observe=kto_observe, initial=KtoStats(0.0), mismatched=True)
def kto(
    logps: LabelLogps,
    stats: KtoStats,
    *,
    beta: Beta = 0.1,
    desirable_weight: DesirableWeight = 1.0,
    undesirable_weight: UndesirableWeight = 1.0,
) -> tuple[Tensor, Figures]:
    """Kahneman-Tversky Optimization, [S] single labelled responses (Ethayarajh et al., arXiv 2402.01306, eq. 7).

    Desirable: l_D (1 - sigmoid(beta (r - z))); undesirable: l_U (1 - sigmoid(beta (z - r))). z estimates
    KL(pi || pi_ref) as max(0, mean r of prompts with other prompts' responses), over the batch of all ranks, without
    gradient; a step that has none of those keeps the z before it.
    """
    sign = torch.where(logps.desirable, 1.0, -1.0)
    weight = torch.where(logps.desirable, desirable_weight, undesirable_weight)
    losses = weight * (-sign * beta * (logps.ratio - stats.z)).sigmoid()
    return losses, {"z": torch.full_like(losses, stats.z)}
