"""Objectives that learn from ties as well: models of comparison with a third outcome in the place of Bradley-Terry's.

Both give the tie a parameter nu and are DPO where ties are impossible. A tied pair pulls the two log-ratios together,
a decided one pushes them apart by more than DPO does, because winning has to beat a tie, too.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from preference.objectives.base import Beta, Figures, PairLogps, objective

RaoKupperNu = Annotated[
    float, Field(gt=1, description="Tendency to tie: equals tie with probability (nu - 1) / (nu + 1); at 1 never.")
]
DavidsonNu = Annotated[
    float, Field(gt=0, description="Tendency to tie: equals tie with probability nu / (nu + 1); at 0 never.")
]


@objective("rao_kupper", paper="2409.17431", ties=True)
def rao_kupper(logps: PairLogps, stats: None, *, beta: Beta = 0.1, nu: RaoKupperNu = 3.0) -> tuple[Tensor, Figures]:
    """DPO under the model of Rao and Kupper, [P] (Chen et al., arXiv 2409.17431; Rao & Kupper, JASA 62, 1967).

    d = beta D. A decided pair: -log sigmoid(d - log nu). A tie: -log[(nu^2 - 1) sigmoid(d - log nu)
    sigmoid(-d - log nu)]. nu = 3: equals tie half of the time.
    """
    d, threshold = beta * logps.gap, math.log(nu)
    win, loss = F.logsigmoid(d - threshold), F.logsigmoid(-d - threshold)
    return -torch.where(logps.tied, math.log((nu - 1) * (nu + 1)) + win + loss, win), {}


@objective("davidson", paper="2409.17431", ties=True)
def davidson(logps: PairLogps, stats: None, *, beta: Beta = 0.1, nu: DavidsonNu = 1.0) -> tuple[Tensor, Figures]:
    """DPO under the model of Davidson, [P] (Chen et al., arXiv 2409.17431; Davidson, JASA 65, 1970).

    d = beta D; win : loss : tie = exp(d / 2) : exp(-d / 2) : 2 nu, and the loss is -log of the outcome's share.
    nu = 1: equals tie half of the time.
    """
    half = beta * logps.gap / 2
    tie = torch.full_like(half, math.log(2 * nu))
    total = torch.logsumexp(torch.stack([half, -half, tie]), dim=0)
    return total - torch.where(logps.tied, tie, half), {}
