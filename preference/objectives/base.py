"""What an objective is: a pure function of log-probs, and what it says about itself.

    @objective("ipo", paper="2310.12036")
    def ipo(logps: PairLogps, stats: None, *, beta: Beta = 0.1) -> tuple[Tensor, Figures]: ...

``loss(logps, stats, **parameters) -> (losses, figures)``: ``logps`` are those of one micro-batch of one rank; ``stats``
is what is known of the whole batch (all ranks, all micro-batches) and of the steps before; ``losses`` holds one value
an item, and its sum over the step, divided by the step's items, is what is minimised. Keyword parameters become the
objective's configuration, with their types, bounds and documentation (``configs.objectives``).

An objective that needs to know the whole batch brings ``observe(batch, stats, **parameters) -> stats``. It is called
once a step, on every rank alike, on the sums that a pass without gradients found; what it returns is handed to every
``loss`` of the step, saved in checkpoints, and given back to it at the next step.

Notation: r = log pi - log pi_ref, summed over a response's tokens, nats; D = r_chosen - r_rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

Beta = Annotated[float, Field(gt=0, description="Strength of the tether to the reference.")]
Smoothing = Annotated[float, Field(ge=0, lt=0.5, description="Probability that a label is flipped.")]

Figures = Mapping[str, Tensor]
"""What else an objective wants to have logged: name -> one detached value an item; its mean over the step is shown."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Per-token log-probs of S responses, one after the other: N values, ``lengths`` [S] of them each."""

    policy: Tensor  # [N], carries the gradient
    reference: Tensor  # [N]
    collision: Tensor  # [N], log sum_v pi(v)^2 without gradient; nan unless the objective asked for ``collision``
    lengths: Tensor  # [S]

    def sums(self, values: Tensor) -> Tensor:
        """[N] values -> [S] sums over each response's tokens."""
        return sum_by_sequence(values, self.lengths)

    @property
    def position(self) -> Tensor:
        """[N] number of the token within its response, from 0."""
        starts = self.lengths.cumsum(0) - self.lengths
        return torch.arange(len(self.policy), device=self.policy.device) - starts.repeat_interleave(self.lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSums:
    """Log-probs of P pairs, summed over response tokens, nats; each field [P].

    Without a reference pool the reference's fields are nan: an objective that used them by mistake would not go
    unnoticed.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_ref: Tensor
    rejected_ref: Tensor
    chosen_len: Tensor  # tokens
    rejected_len: Tensor
    probability: Tensor  # the judge's P(chosen is better), 1 for a plain label
    tied: Tensor  # bool: the judge saw no winner; only for objectives that declare ``ties``
    from_reference: Tensor  # which response the reference wrote: +1 chosen, -1 rejected, 0 neither (or both)

    @property
    def chosen_ratio(self) -> Tensor:
        """r_chosen [P]."""
        return self.chosen - self.chosen_ref

    @property
    def rejected_ratio(self) -> Tensor:
        """r_rejected [P]."""
        return self.rejected - self.rejected_ref

    @property
    def gap(self) -> Tensor:
        """D = r_chosen - r_rejected [P]."""
        return self.chosen_ratio - self.rejected_ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLogps(PairSums):
    """The pairs of one micro-batch, with gradient, and their tokens."""

    index: Tensor  # [P] number of the pair in the whole batch: where to find it in ``stats``
    chosen_tokens: Tokens
    rejected_tokens: Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSums:
    """Log-probs of S single responses with a label each; every field [S]. A pair counts as two of them."""

    policy: Tensor
    reference: Tensor
    length: Tensor
    desirable: Tensor  # bool

    @property
    def ratio(self) -> Tensor:
        """r [S]."""
        return self.policy - self.reference


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelLogps(LabelSums):
    """The labelled responses of one micro-batch, with gradient, and their tokens."""

    index: Tensor  # [S] number of the response in the whole batch
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Observed:
    """What ``observe`` gets: the sums of the whole batch, without gradient, in fp64, in the batch's order."""

    items: Any  # PairSums for an objective on pairs, LabelSums for one on labels
    mismatched: Tensor  # [M] log-ratios of prompts with other prompts' responses; empty unless asked for


Data = Literal["pairs", "labels"]
Reward = Literal["ratio", "logp", "mean_ratio", "mean_logp"]
Normaliser = Literal["items", "tokens"]


@dataclass(frozen=True, slots=True)
class Objective:
    """An objective's function and what the trainer has to know about it."""

    name: str
    loss: Callable[..., tuple[Tensor, Figures]]
    paper: str
    data: Data
    reference: bool  # False: runs without a reference pool
    reward: Reward  # what is shown as a response's reward, times beta where there is one
    normaliser: Normaliser  # what the sum of losses is divided by: items, or tokens of the desirable responses
    observe: Callable[..., Any] | None
    initial: Any  # stats before the first step
    mismatched: bool  # ``observe`` wants log-ratios of mismatched prompts and responses
    collision: bool  # ``loss`` wants ``Tokens.collision``
    reference_samples: bool  # learns only from pairs of which the reference wrote a response
    own_samples: bool  # takes every response that the reference did not write for one that the policy sampled
    ties: bool  # knows what to do with a pair that the judge called a tie


REGISTRY: dict[str, Objective] = {}
Loss = TypeVar("Loss", bound=Callable[..., tuple[Tensor, Figures]])


def objective(
    name: str,
    *,
    paper: str,
    data: Data = "pairs",
    reference: bool = True,
    reward: Reward | None = None,
    normaliser: Normaliser = "items",
    observe: Callable[..., Any] | None = None,
    initial: Any = None,
    mismatched: bool = False,
    collision: bool = False,
    reference_samples: bool = False,
    own_samples: bool = False,
    ties: bool = False,
) -> Callable[[Loss], Loss]:
    """Register a loss function under ``name``; returns it unchanged, so tests call it directly."""

    def register(loss: Loss) -> Loss:
        if name in REGISTRY:
            raise ValueError(f"objective {name!r} is defined twice")
        shown: Reward = reward or ("ratio" if reference else "logp")
        REGISTRY[name] = Objective(
            name,
            loss,
            paper,
            data,
            reference,
            shown,
            normaliser,
            observe,
            initial,
            mismatched,
            collision,
            reference_samples,
            own_samples,
            ties,
        )
        return loss

    return register


def sum_by_sequence(token_logps: Tensor, lengths: Tensor) -> Tensor:
    """[N] per-token values and [S] lengths (sum N) -> [S] sums, in the dtype of the input (fp32 for log-probs)."""
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=token_logps.device), lengths)
    return token_logps.new_zeros(len(lengths)).index_add_(0, owner, token_logps)
