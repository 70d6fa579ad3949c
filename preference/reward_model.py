"""A reward model: a causal LM's trunk with a scalar head, on the same packed rows as policy and reference.

A response's score is read from the hidden state of its conversation's last token. So that the trainer's command
stream, objectives' sums and reports serve it unchanged, the scores come as values of tokens like log-probs: a
response's values add up to its score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preference.attention import Layout
from preference.logprobs import PackedModel
from preference.objectives.base import Figures, Objective, PairLogps


def read_length(ids: Sequence[int], pad: int | None) -> int:
    """How many of a conversation's ids Transformers' classifiers read: they score at the last that is not ``pad``.

    Also where the template itself ends with that token. Without a padding token (None) they read all.
    """
    return next((i for i in range(len(ids), 0, -1) if ids[i - 1] != pad), 0)


def readable(response: Sequence[int], pad: int | None) -> tuple[int, ...]:
    """The ids to pack for a response that ends its conversation; empty where nothing of it is read.

    One token follows what is read, neither fed nor learned from: packing predicts a response's last token only.
    """
    end = read_length(response, pad)
    return (*response[:end], response[end - 1]) if end else ()


class ScoreHead(nn.Module):
    """Takes the place of a classifier's ``score``: same parameters under the same names, the product in fp32.

    In bf16 scores near 5 would lie 1/32 apart, and pairs would tie.
    """

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        weight, bias = projection.weight, getattr(projection, "bias", None)
        assert isinstance(weight, nn.Parameter)
        self.weight = weight
        self.bias = bias if isinstance(bias, nn.Parameter) else None

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [S, H] -> scores [S], fp32 (fp64 for fp64 weights)."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(wide)
        return F.linear(hidden.to(wide), self.weight.to(wide), bias).squeeze(-1)


class RewardModel(PackedModel):
    """A Hugging Face sequence classifier with one output that answers with the scores of a packed row's responses.

    Called like ``LogProbModel``, with responses made by ``readable``: ``forward(...)`` -> (values [N], a response's
    score at its last token and 0 before; [0]).
    """

    def __init__(self, classifier: Any) -> None:
        super().__init__(classifier)
        classifier.score = ScoreHead(classifier.score)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, source: Tensor, target: Tensor, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        hidden = self.hidden(input_ids, position_ids, layout)
        lengths = torch.tensor([fed + 1 for responses in layout.responses for fed in responses], device=source.device)
        ends = lengths.cumsum(0) - 1
        scores: Tensor = self.lm.score(hidden[source[ends]])
        return scores.new_zeros(len(source)).index_copy(0, ends, scores), scores.new_empty(0)


def bradley_terry(
    logps: PairLogps, stats: None, *, margin: float = 0.0, centring: float = 0.0
) -> tuple[Tensor, Figures]:
    """Negative log-likelihood of the Bradley-Terry model, [P] (Ouyang et al., arXiv 2203.02155, eq. 1).

    -log sigmoid(r_chosen - r_rejected - m) + c (r_chosen + r_rejected)^2. m = ``margin`` asks for a distance between
    the two (Touvron et al., arXiv 2307.09288, eq. 2, with one m for all pairs); c = ``centring`` keeps scores around
    zero, where the first term alone leaves them free (Eisenstein et al., arXiv 2312.09244).
    """
    loss = -F.logsigmoid(logps.chosen - logps.rejected - margin)
    return loss + centring * (logps.chosen + logps.rejected).square(), {}


BRADLEY_TERRY = Objective(
    name="bradley_terry",
    loss=bradley_terry,
    paper="2203.02155",
    data="pairs",
    reference=False,
    reward="logp",
    normaliser="items",
    observe=None,
    initial=None,
    mismatched=False,
    collision=False,
    reference_samples=False,
    own_samples=False,
    ties=False,
)
"""Not in the registry of objectives: it scores responses with a head that no policy has."""
