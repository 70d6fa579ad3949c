"""Preference objectives: pure functions of log-probs.

Each takes ``PairLogps`` and its own parameters and returns per-pair losses [P]. r = log pi - log pi_ref, summed over
a response's tokens; D = r_chosen - r_rejected.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Log-probs of P pairs, summed over response tokens, nats; each field [P]. Reference values carry no gradient."""

    chosen: Tensor
    rejected: Tensor
    chosen_ref: Tensor
    rejected_ref: Tensor
    chosen_len: Tensor
    rejected_len: Tensor

    @property
    def chosen_ratio(self) -> Tensor:
        """r_chosen [P]."""
        return self.chosen - self.chosen_ref

    @property
    def rejected_ratio(self) -> Tensor:
        """r_rejected [P]."""
        return self.rejected - self.rejected_ref


def dpo(logps: PairLogps, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Direct Preference Optimization, [P] (Rafailov et al., arXiv 2305.18290, eq. 7).

    -(1 - e) log sigmoid(beta D) - e log sigmoid(-beta D); e = ``label_smoothing`` > 0 is conservative DPO (cDPO).
    With pi == pi_ref it is ln 2 for every e.
    """
    logits = beta * (logps.chosen_ratio - logps.rejected_ratio)
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def sum_by_sequence(token_logps: Tensor, lengths: Tensor) -> Tensor:
    """[N] per-token values and [S] lengths (sum N) -> [S] sums, in the dtype of the input (fp32 for log-probs)."""
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=token_logps.device), lengths)
    return token_logps.new_zeros(len(lengths)).index_add_(0, owner, token_logps)
