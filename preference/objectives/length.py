"""DPO with the length of responses taken out of the gap, in three ways."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from preference.objectives.base import Beta, Figures, PairLogps, Tokens, objective
from preference.objectives.terms import mean_gap

TailWeight = Annotated[
    float, Field(ge=0, le=1, description="Weight of tokens past the shorter response's length; 1 is DPO.")
]
LengthWeight = Annotated[
    float, Field(ge=0, description="Reward a token of length costs a response, in units of beta nats.")
]


@objective("length_normalised", paper="2411.15124", reward="mean_ratio")
def length_normalised(logps: PairLogps, stats: None, *, beta: Beta = 5.0) -> tuple[Tensor, Figures]:
    """Length-normalised DPO (Tulu 3), [P] (Lambert et al., arXiv 2411.15124).

    -log sigmoid(beta (r_chosen / len_chosen - r_rejected / len_rejected)). Ratios are a token's, hence the large beta.
    """
    return -F.logsigmoid(beta * mean_gap(logps)), {}


@objective("ld_dpo", paper="2409.06411")
def ld_dpo(logps: PairLogps, stats: None, *, beta: Beta = 0.1, alpha: TailWeight = 0.5) -> tuple[Tensor, Figures]:
    """Length-desensitised DPO, [P] (Liu et al., arXiv 2409.06411).

    DPO where the tokens of the longer response past the length of the shorter have their log-probs, the policy's and
    the reference's, multiplied by alpha.
    """
    shared = torch.minimum(logps.chosen_len, logps.rejected_len)
    gap = _desensitised(logps.chosen_tokens, shared, alpha) - _desensitised(logps.rejected_tokens, shared, alpha)
    return -F.logsigmoid(beta * gap), {}


def _desensitised(tokens: Tokens, shared: Tensor, alpha: float) -> Tensor:
    """[S] log-ratios of responses, tokens from position ``shared`` [S] on weighted alpha."""
    ratio = tokens.policy - tokens.reference
    tail = tokens.position >= shared.repeat_interleave(tokens.lengths)
    return tokens.sums(torch.where(tail, alpha * ratio, ratio))


@objective("r_dpo", paper="2403.19159")
def r_dpo(logps: PairLogps, stats: None, *, beta: Beta = 0.1, alpha: LengthWeight = 0.01) -> tuple[Tensor, Figures]:
    """Length-regularised DPO, [P] (Park et al., arXiv 2403.19159).

    -log sigmoid(beta D + alpha (len_chosen - len_rejected)). Plus, as follows from the reward less alpha a token being
    what is maximised: pi ~ pi_ref exp((reward - alpha len) / beta), so the reward is beta r + alpha len, and its gap
    is what the labels explain. A longer chosen response is then partly explained by its length and is pushed less;
    with a minus, as some comparisons quote the loss, long responses would be pushed more.
    """
    longer = (logps.chosen_len - logps.rejected_len).to(logps.gap)
    return -F.logsigmoid(beta * logps.gap + alpha * longer), {}
