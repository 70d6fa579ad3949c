"""From a cell's log-probs to the loss that is differentiated and the sums that are reported.

Everything is a sum over items (or tokens) divided by what the whole step holds of them, so that neither the number of
workers nor the number of micro-batches nor fillers change loss or gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from preference.batching import Cell, Mismatched, StepSize
from preference.objectives.base import (
    LabelLogps,
    LabelSums,
    Objective,
    Observed,
    PairLogps,
    PairSums,
    Tokens,
    sum_by_sequence,
)


@dataclass(frozen=True, slots=True)
class Term:
    """One objective of a run, its weight in the loss, and its parameters."""

    objective: Objective
    weight: float
    parameters: Mapping[str, Any]

    @property
    def beta(self) -> float:
        """What a log-ratio is multiplied by where it is shown as a reward; 1 for objectives without one."""
        return float(self.parameters.get("beta", 1.0))


@dataclass(frozen=True, slots=True)
class CellSums:
    """Per-response sums of one cell without gradient, in fp64 on the CPU: what ranks tell each other to ``observe``."""

    items: Tensor  # [E]
    policy: Tensor  # [S]
    reference: Tensor  # [S]
    length: Tensor  # [S]
    desirable: Tensor  # [S]
    probability: Tensor  # [E]
    tied: Tensor  # [E]
    from_reference: Tensor  # [E]


def cell_sums(cell: Cell, logps: Tensor) -> CellSums | None:
    """The cell's sums for ``assemble``; None for a filler."""
    if not cell.weights.any():
        return None
    lengths = torch.tensor(cell.packed.lengths)
    return CellSums(
        torch.tensor(cell.items),
        sum_by_sequence(logps.detach().cpu().double(), lengths),
        sum_by_sequence(torch.tensor(cell.reference).double(), lengths),
        lengths,
        torch.tensor(cell.desirable),
        torch.tensor(cell.probability).double(),
        torch.tensor(cell.tied),
        torch.tensor(cell.from_reference),
    )


def mismatched_ratios(cell: Mismatched, logps: Tensor) -> Tensor:
    """[S] log-ratios of the cell's mismatched responses, fp64 on the CPU; empty for a filler."""
    if not cell.weights.any():
        return torch.zeros(0, dtype=torch.float64)
    difference = logps.detach().cpu().double() - torch.tensor(cell.reference).double()
    return sum_by_sequence(difference, torch.tensor(cell.packed.lengths))


def assemble(parts: Sequence[CellSums], mismatched: Sequence[Tensor], data: str) -> Observed:
    """Cells of all ranks and micro-batches -> the whole batch in the order of its items."""
    items = torch.cat([p.items for p in parts])
    order = torch.argsort(items)
    each = len(torch.cat([p.length for p in parts])) // len(items)

    def responses(name: str) -> Tensor:
        """[items, each], in order."""
        return torch.cat([getattr(p, name) for p in parts]).view(-1, each)[order]

    ratios = torch.cat(list(mismatched)) if mismatched else torch.zeros(0, dtype=torch.float64)
    policy, reference, length, desirable = (responses(n) for n in ("policy", "reference", "length", "desirable"))
    if data == "labels":
        flat = (x.flatten() for x in (policy, reference, length, desirable))
        return Observed(
            LabelSums(**dict(zip(("policy", "reference", "length", "desirable"), flat, strict=True))), ratios
        )
    sums = PairSums(
        chosen=policy[:, 0],
        rejected=policy[:, 1],
        chosen_ref=reference[:, 0],
        rejected_ref=reference[:, 1],
        chosen_len=length[:, 0],
        rejected_len=length[:, 1],
        probability=torch.cat([p.probability for p in parts])[order],
        tied=torch.cat([p.tied for p in parts])[order],
        from_reference=torch.cat([p.from_reference for p in parts])[order],
    )
    return Observed(sums, ratios)


@dataclass(frozen=True, slots=True)
class _Responses:
    """A cell's tensors on the trainer's device."""

    tokens: Tokens
    policy: Tensor  # [S]
    reference: Tensor  # [S]
    desirable: Tensor  # [S] bool
    weights: Tensor  # [S]
    item_weights: Tensor  # [E]
    each: int


def _responses(cell: Cell, logps: Tensor, collision: Tensor) -> _Responses:
    device = logps.device
    lengths = torch.tensor(cell.packed.lengths).to(device)
    reference = torch.tensor(cell.reference).to(device, logps.dtype)
    collision = collision if len(collision) else torch.full_like(reference, float("nan"))
    weights = torch.tensor(cell.weights).to(device, logps.dtype)
    each = cell.packed.responses_each
    return _Responses(
        Tokens(logps, reference, collision, lengths),
        sum_by_sequence(logps, lengths),
        sum_by_sequence(reference, lengths),
        torch.tensor(cell.desirable).to(device),
        weights.repeat_interleave(each),
        weights,
        each,
    )


def _pair_logps(cell: Cell, r: _Responses) -> PairLogps:
    device = r.policy.device
    owner_is_chosen = r.desirable.repeat_interleave(r.tokens.lengths)

    def tokens(mask: Tensor, lengths: Tensor) -> Tokens:
        return Tokens(r.tokens.policy[mask], r.tokens.reference[mask], r.tokens.collision[mask], lengths)

    chosen_len, rejected_len = r.tokens.lengths[0::2], r.tokens.lengths[1::2]
    return PairLogps(
        chosen=r.policy[0::2],
        rejected=r.policy[1::2],
        chosen_ref=r.reference[0::2],
        rejected_ref=r.reference[1::2],
        chosen_len=chosen_len,
        rejected_len=rejected_len,
        probability=torch.tensor(cell.probability).to(device, r.policy.dtype),
        tied=torch.tensor(cell.tied).to(device),
        from_reference=torch.tensor(cell.from_reference).to(device),
        index=torch.tensor(cell.items).to(device),
        chosen_tokens=tokens(owner_is_chosen, chosen_len),
        rejected_tokens=tokens(~owner_is_chosen, rejected_len),
    )


def _label_logps(cell: Cell, r: _Responses) -> LabelLogps:
    first = torch.tensor(cell.items).to(r.policy.device) * r.each
    index = (first[:, None] + torch.arange(r.each, device=first.device)).flatten()
    return LabelLogps(
        policy=r.policy,
        reference=r.reference,
        length=r.tokens.lengths,
        desirable=r.desirable,
        index=index,
        tokens=r.tokens,
    )


def cell_loss(
    cell: Cell, logps: Tensor, collision: Tensor, terms: Sequence[Term], stats: Sequence[Any], size: StepSize
) -> tuple[Tensor, dict[str, Tensor]]:
    """The cell's share of the step's loss, and of its reported sums (fp64, by name; the same names on every rank).

    ``logps`` [N] are of ``cell.packed.target`` in order; ``stats[k]`` belongs to ``terms[k]``.
    """
    r = _responses(cell, logps, collision)
    pairs = _pair_logps(cell, r) if r.each == 2 else None
    labels = _label_logps(cell, r)
    total = logps.new_zeros(())
    sums: dict[str, Tensor] = {}
    for term, known in zip(terms, stats, strict=True):
        on_pairs = term.objective.data == "pairs"
        view = pairs if on_pairs else labels
        weights = r.item_weights if on_pairs else r.weights
        losses, figures = term.objective.loss(view, known, **term.parameters)
        items = size.items * (1 if on_pairs else r.each)
        normaliser = size.desirable_tokens if term.objective.normaliser == "tokens" else items
        # where, not a product: a filler's loss may be infinite, and its gradient must not be nan.
        share = torch.where(weights > 0, losses, 0.0).sum() / max(normaliser, 1)
        total = total + term.weight * share
        name = term.objective.name
        sums[f"loss/{name}"] = share
        sums |= {f"{name}/{f}": (v.detach() * weights).sum() / items for f, v in figures.items()}
    sums["loss"] = total
    return total, {k: v.detach().double().cpu() for k, v in (sums | _reported(cell, r, terms[0])).items()}


def _reported(cell: Cell, r: _Responses, first: Term) -> dict[str, Tensor]:
    """Sums over responses, chosen (desirable) and rejected (undesirable) apart; divided in ``TrainMetrics``."""
    with torch.no_grad():
        ratio = r.policy - r.reference
        length = r.tokens.lengths
        values = {"ratio": ratio, "mean_ratio": ratio / length, "logp": r.policy, "mean_logp": r.policy / length}
        reward = first.beta * values[first.objective.reward]
        chosen, rejected = r.weights * r.desirable, r.weights * ~r.desirable
        sums: dict[str, Tensor] = {}
        for side, weights in (("chosen", chosen), ("rejected", rejected)):
            # A weight of zero must silence a nan as well.
            present = weights > 0
            shown = {
                "rewards": reward,
                "logps": r.policy,
                "ratio": ratio,
                "length": length,
                "count": torch.ones_like(ratio),
            }
            sums |= {f"{name}_{side}": torch.where(present, v, 0).sum() for name, v in shown.items()}
        won = torch.full_like(r.item_weights, float("nan"))
        if r.each == 2:  # there is nothing to be right about in a tie: it counts half
            won = (reward[0::2] > reward[1::2]).double().masked_fill(torch.tensor(cell.tied).to(reward.device), 0.5)
        sums["accuracies"] = torch.where(r.item_weights > 0, won, 0).sum()
        sampler = torch.tensor(cell.sampler).to(r.policy.device)
        counted = r.weights.repeat_interleave(length).bool() & sampler.isfinite()
        sums["mismatch"] = torch.where(counted, (r.tokens.policy - sampler).abs(), 0).sum()
        sums["sampled_tokens"] = counted.sum()
        sums["tokens"] = torch.tensor(float(cell.packed.tokens) if cell.weights.any() else 0.0)
        return sums
