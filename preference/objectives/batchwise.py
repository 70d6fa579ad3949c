"""Objectives where a pair's loss depends on the rest of the batch: sorted margins, and a beta of the batch's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from preference.objectives.base import Beta, Figures, Observed, PairLogps, objective

Sensitivity = Annotated[float, Field(ge=0, description="How far beta follows the batch's mean gap, a nat.")]
Momentum = Annotated[float, Field(ge=0, lt=1, description="Momentum of the running mean and deviation of the gap.")]
Filtered = Annotated[float, Field(ge=0, lt=1, description="Share of the batch left out, outliers first by chance.")]
MinBeta = Annotated[float, Field(gt=0, description="What beta is kept above.")]


@dataclass(frozen=True, slots=True)
class AotStats:
    """[P] for each pair of the batch, the reference's margin that has the rank of its own."""

    reference: Tensor


@dataclass(frozen=True, slots=True)
class AotUnpairedStats:
    """[P] for each pair's chosen (rejected) log-ratio, the rejected (chosen) one that has its rank."""

    rejected: Tensor
    chosen: Tensor


def matched(own: Tensor, others: Tensor) -> Tensor:
    """[P] for each of ``own`` the value that has its rank among ``others`` [P]: optimal transport on a line."""
    return torch.empty_like(others).index_copy_(0, own.argsort(stable=True), others.sort().values)


def _of(stat: Tensor, logps: PairLogps) -> Tensor:
    """The whole batch's ``stat`` -> that of this micro-batch's pairs, in its precision."""
    return stat.to(logps.chosen)[logps.index]


def aot_observe(batch: Observed, stats: AotStats | None, *, beta: float) -> AotStats:
    items = batch.items
    return AotStats(matched(items.chosen - items.rejected, items.chosen_ref - items.rejected_ref))


@objective("aot", paper="2406.05882", observe=aot_observe)
def aot(logps: PairLogps, stats: AotStats, *, beta: Beta = 0.1) -> tuple[Tensor, Figures]:
    """Alignment via Optimal Transport, paired, [P] (Melnyk et al., arXiv 2406.05882).

    -log sigmoid(beta (m_(k) - m_ref(k))): log pi(chosen) - log pi(rejected) over the batch sorted against the same of
    the reference, so that the policy's margins dominate the reference's as a distribution. Batches of one are DPO.
    """
    margin = logps.chosen - logps.rejected
    return -F.logsigmoid(beta * (margin - _of(stats.reference, logps))), {}


def aot_unpaired_observe(batch: Observed, stats: AotUnpairedStats | None, *, beta: float) -> AotUnpairedStats:
    chosen, rejected = batch.items.chosen_ratio, batch.items.rejected_ratio
    return AotUnpairedStats(rejected=matched(chosen, rejected), chosen=matched(rejected, chosen))


@objective("aot_unpaired", paper="2406.05882", observe=aot_unpaired_observe)
def aot_unpaired(logps: PairLogps, stats: AotUnpairedStats, *, beta: Beta = 0.1) -> tuple[Tensor, Figures]:
    """Alignment via Optimal Transport, unpaired, [P] (Melnyk et al., arXiv 2406.05882).

    -log sigmoid(beta (r_chosen(k) - r_rejected(k))), both sorted over the whole batch. The two of rank k may be in
    different micro-batches: a pair counts the value where its chosen response stands, and adds the gradient (and
    nothing to the value) where its rejected one does. Summed over the batch both are exactly the sorted loss's.
    """
    chosen = -F.logsigmoid(beta * (logps.chosen_ratio - _of(stats.rejected, logps)))
    rejected = -F.logsigmoid(beta * (_of(stats.chosen, logps) - logps.rejected_ratio))
    return chosen + (rejected - rejected.detach()), {}


@dataclass(frozen=True, slots=True)
class BetaDpoStats:
    """Running mean and deviation of D, nats, over ``steps``; the step's beta and its pairs' weights [P]."""

    mean: float
    std: float
    steps: float
    beta: float
    weights: Tensor


def beta_dpo_observe(
    batch: Observed,
    stats: BetaDpoStats,
    *,
    beta: float,
    sensitivity: float,
    momentum: float,
    filtered: float,
    min_beta: float,
) -> BetaDpoStats:
    gap: Tensor = batch.items.gap.cpu()
    deviation = gap.std().item() if len(gap) > 1 else 0.0
    mean = momentum * stats.mean + (1 - momentum) * gap.mean().item()
    std = momentum * stats.std + (1 - momentum) * deviation
    # The largest of log-weights plus Gumbel noise: drawing without replacement, also where weights underflow. Noise
    # of the step's number alone is the same on every rank and after a restart.
    log_weights = -0.5 * ((gap - mean) / max(std, 1e-12)) ** 2
    noise = torch.empty_like(gap).exponential_(generator=torch.Generator().manual_seed(int(stats.steps)))
    kept = (log_weights - noise.log()).topk(max(1, int(len(gap) * (1 - filtered)))).indices
    weights = torch.zeros_like(gap)
    weights[kept] = len(gap) / len(kept)
    followed = beta * (1 + sensitivity * (gap[kept].mean().item() - mean))
    return BetaDpoStats(mean, std, stats.steps + 1, max(min_beta, followed), weights)


@objective(
    "beta_dpo",
    paper="2407.08639",
    observe=beta_dpo_observe,
    initial=BetaDpoStats(0.0, 0.0, 0.0, 0.0, torch.empty(0, dtype=torch.float64)),
)
def beta_dpo(
    logps: PairLogps,
    stats: BetaDpoStats,
    *,
    beta: Beta = 0.1,
    sensitivity: Sensitivity = 0.6,
    momentum: Momentum = 0.9,
    filtered: Filtered = 0.2,
    min_beta: MinBeta = 1e-3,
) -> tuple[Tensor, Figures]:
    """beta-DPO, [P] (Wu et al., arXiv 2407.08639).

    DPO with one beta a batch, beta (1 + a (mean D - M)), at least ``min_beta``: M the running mean of D, a =
    ``sensitivity``. Batches that are far apart already get a stronger tether. Of a batch a share ``filtered`` is left
    out, drawn without replacement so that a pair is kept by weight exp(-(D - M)^2 / 2 std^2), and mean D is that of
    the pairs kept, which weigh 1 / their share. As in the authors' code the running values start from 0 and take this
    batch in before they are used; neither beta nor a weight carries gradient.
    """
    weight = _of(stats.weights, logps)
    losses = -weight * F.logsigmoid(stats.beta * logps.gap)
    return losses, {"beta": torch.full_like(losses, stats.beta), "weight": weight}
