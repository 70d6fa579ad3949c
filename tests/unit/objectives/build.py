"""Batches to test objectives on: from sums or at random, differentiable by token, divisible into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from preference.objectives import REGISTRY
from preference.objectives.base import LabelLogps, LabelSums, Observed, PairLogps, PairSums, Tokens


def spread(sums: Sequence[float], lengths: Sequence[int]) -> Tensor:
    """Sums of responses -> their tokens, alike within a response."""
    values = torch.tensor(sums, dtype=torch.float64) / torch.tensor(lengths)
    return values.repeat_interleave(torch.tensor(lengths))


def take(tokens: Tokens, which: Sequence[int]) -> Tokens:
    """The responses numbered ``which``."""
    sizes = tokens.lengths.tolist()

    def pick(values: Tensor) -> Tensor:
        parts = values.split(sizes)
        return torch.cat([parts[i] for i in which])

    return Tokens(*(pick(v) for v in (tokens.policy, tokens.reference, tokens.collision)), tokens.lengths[list(which)])


@dataclass(frozen=True)
class Pairs:
    chosen: Tokens
    rejected: Tokens
    probability: Tensor
    tied: Tensor
    from_reference: Tensor

    @property
    def size(self) -> int:
        return len(self.probability)

    def leaves(self) -> tuple[Tensor, ...]:
        """Fresh policy log-probs by token, to differentiate by: chosen, rejected."""
        return tuple(t.policy.detach().clone().requires_grad_() for t in (self.chosen, self.rejected))

    def logps(self, chosen: Tensor, rejected: Tensor, which: Sequence[int] | None = None) -> PairLogps:
        which = range(self.size) if which is None else which
        one = take(replace(self.chosen, policy=chosen), which)
        two = take(replace(self.rejected, policy=rejected), which)
        return PairLogps(
            chosen=one.sums(one.policy),
            rejected=two.sums(two.policy),
            chosen_ref=one.sums(one.reference),
            rejected_ref=two.sums(two.reference),
            chosen_len=one.lengths,
            rejected_len=two.lengths,
            probability=self.probability[list(which)],
            tied=self.tied[list(which)],
            from_reference=self.from_reference[list(which)],
            index=torch.tensor(list(which)),
            chosen_tokens=one,
            rejected_tokens=two,
        )

    def observed(self, mismatched: Sequence[float] = ()) -> Observed:
        logps = self.logps(self.chosen.policy, self.rejected.policy)
        fields = {name: getattr(logps, name) for name in PairSums.__slots__}
        fields = {name: value if value.dtype is torch.bool else value.double() for name, value in fields.items()}
        return Observed(PairSums(**fields), torch.tensor(mismatched, dtype=torch.float64))

    def subset(self, which: Sequence[int]) -> Pairs:
        """These pairs as a batch of their own."""
        rows = list(which)
        sides = take(self.chosen, rows), take(self.rejected, rows)
        return Pairs(*sides, self.probability[rows], self.tied[rows], self.from_reference[rows])

    def swapped(self) -> Pairs:
        return Pairs(self.rejected, self.chosen, 1 - self.probability, self.tied, -self.from_reference)

    def to(self, dtype: torch.dtype) -> Pairs:
        sides = _to(self.chosen, dtype), _to(self.rejected, dtype)
        return Pairs(*sides, self.probability.to(dtype), self.tied, self.from_reference)


@dataclass(frozen=True)
class Labels:
    tokens: Tokens
    desirable: Tensor

    @property
    def size(self) -> int:
        return len(self.desirable)

    def leaves(self) -> tuple[Tensor, ...]:
        return (self.tokens.policy.detach().clone().requires_grad_(),)

    def logps(self, policy: Tensor, which: Sequence[int] | None = None) -> LabelLogps:
        which = range(self.size) if which is None else which
        tokens = take(replace(self.tokens, policy=policy), which)
        return LabelLogps(
            policy=tokens.sums(tokens.policy),
            reference=tokens.sums(tokens.reference),
            length=tokens.lengths,
            desirable=self.desirable[list(which)],
            index=torch.tensor(list(which)),
            tokens=tokens,
        )

    def observed(self, mismatched: Sequence[float] = ()) -> Observed:
        logps = self.logps(self.tokens.policy)
        sums = LabelSums(
            policy=logps.policy.double(),
            reference=logps.reference.double(),
            length=logps.length,
            desirable=logps.desirable,
        )
        return Observed(sums, torch.tensor(mismatched, dtype=torch.float64))

    def to(self, dtype: torch.dtype) -> Labels:
        return Labels(_to(self.tokens, dtype), self.desirable)


Batch = Pairs | Labels


def _to(tokens: Tokens, dtype: torch.dtype) -> Tokens:
    return Tokens(tokens.policy.to(dtype), tokens.reference.to(dtype), tokens.collision.to(dtype), tokens.lengths)


def tokens_of(policy: Sequence[float], reference: Sequence[float], lengths: Sequence[int], collision: float = -1.0):
    """Tokens of responses with these sums; ``collision`` alike for all."""
    own = spread(policy, lengths)
    return Tokens(own, spread(reference, lengths), torch.full_like(own, collision), torch.tensor(lengths))


def pairs(chosen, rejected, chosen_ref, rejected_ref, chosen_len=None, rejected_len=None, **fields) -> Pairs:
    """Pairs with these summed log-probs; of one token, labelled for certain, written by the policy unless told."""
    ones = [1] * len(chosen)
    collision = fields.get("collision", -1.0)
    return Pairs(
        tokens_of(chosen, chosen_ref, chosen_len or ones, collision),
        tokens_of(rejected, rejected_ref, rejected_len or ones, collision),
        torch.tensor(fields.get("probability", [1.0] * len(chosen)), dtype=torch.float64),
        torch.tensor(fields.get("tied", [False] * len(chosen))),
        torch.tensor(fields.get("from_reference", [0] * len(chosen))),
    )


def labels(policy, reference, desirable, lengths=None) -> Labels:
    return Labels(tokens_of(policy, reference, lengths or [1] * len(policy)), torch.tensor(desirable))


def random_tokens(generator: torch.Generator, responses: int) -> Tokens:
    lengths = torch.randint(1, 7, (responses,), generator=generator)
    total = int(lengths.sum())

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(total, dtype=torch.float64, generator=generator)

    policy = draw(-3.0, -0.1)
    return Tokens(policy, policy + draw(-0.5, 0.5), draw(-2.5, -0.5), lengths)


def random_batch(name: str, size: int = 6, seed: int = 0) -> Batch:
    """A batch of the kind that objective ``name`` takes."""
    generator = torch.Generator().manual_seed(seed)
    tokens = random_tokens(generator, size)
    if REGISTRY[name].data == "labels":
        return Labels(tokens, torch.arange(size) % 3 != 0)
    probability = torch.rand(size, dtype=torch.float64, generator=generator)
    number = torch.arange(size)
    return Pairs(tokens, random_tokens(generator, size), probability, number % 4 == 1, number % 3 - 1)


def defaults(name: str) -> dict[str, object]:
    return dict(REGISTRY[name].loss.__kwdefaults__ or {})


def observe(name: str, batch: Batch, stats=None, mismatched: Sequence[float] = (0.3, -0.1, 0.7), **parameters):
    """Stats after the batch, or the initial ones of an objective that does not observe."""
    objective = REGISTRY[name]
    stats = objective.initial if stats is None else stats
    if objective.observe is None:
        return stats
    return objective.observe(batch.observed(mismatched), stats, **defaults(name) | parameters)


def losses(name: str, batch: Batch, leaves: Sequence[Tensor] | None = None, stats=None, which=None, **parameters):
    """The objective's losses, one an item; ``stats`` are those of this batch unless given."""
    leaves = batch.leaves() if leaves is None else leaves
    stats = observe(name, batch, **parameters) if stats is None else stats
    values, _ = REGISTRY[name].loss(batch.logps(*leaves, which=which), stats, **parameters)
    return values


def gradients(value: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]
