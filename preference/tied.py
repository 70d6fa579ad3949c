"""A matrix that is both input embedding and output projection has one gradient, not two that are added.

Autograd answers an embedding with a [V, H] matrix of zeros but for the rows that a batch read: as much memory again as
the gradient itself, filled and added in every micro-batch. Here those rows wait until the projection's gradient is
there, which backward always computes before, and are added to it in place.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

Rows = tuple[Tensor, Tensor]
"""Token ids [T], and what each adds to its row of the gradient [T, H]."""


class _Lookup(torch.autograd.Function):
    """weight [V, H] at ids [...] -> [..., H]. The gradient goes to ``waiting``; ``weight`` still waits for backward."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding: int | None, waiting: list[Rows]) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.padding, ctx.waiting = padding, waiting
        return nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        ids = ctx.saved_tensors[0].flatten()
        rows = grads[0].flatten(0, -2)
        if ctx.padding is not None:
            rows = rows.masked_fill((ids == ctx.padding)[:, None], 0.0)
        ctx.waiting.append((ids, rows))
        return (None,) * 4


def share_gradient(embedding: Any) -> bool:
    """Have ``embedding``, whose weight a projection shares, add its gradient to the projection's; says whether it does.

    An embedding that does more than look up and scale (by a buffer, as Gemma's) keeps its own forward, and its matrix.
    """
    waiting: list[Rows] = []

    def lookup(self: Any, ids: Tensor) -> Tensor:
        found: Tensor = _Lookup.apply(ids, self.weight, self.padding_idx, waiting)  # type: ignore[no-untyped-call]
        return found * self.embed_scale.to(found.dtype) if hasattr(self, "embed_scale") else found

    def add(grad: Tensor) -> None:
        for ids, rows in waiting:
            seen, which = torch.unique(ids, return_inverse=True)
            wide = torch.promote_types(grad.dtype, torch.float32)  # a token can occur a thousand times
            summed = torch.zeros(len(seen), grad.shape[1], dtype=wide, device=grad.device)
            grad.index_add_(0, seen, summed.index_add_(0, which, rows.to(wide)).to(grad.dtype))
        waiting.clear()

    if not embedding.weight.requires_grad or not _computes(embedding, lookup):
        return False
    embedding.weight.register_hook(add)
    embedding.forward = MethodType(lookup, embedding)
    return True


def _computes(embedding: Any, lookup: Any) -> bool:
    """Whether ``lookup`` gives what the embedding's class gives, on a small one of the same class."""
    if not isinstance(embedding, nn.Embedding) or embedding.max_norm is not None or embedding.scale_grad_by_freq:
        return False
    small: Any = type(embedding).__new__(type(embedding))
    nn.Module.__init__(small)
    small.__dict__.update({k: v for k, v in vars(embedding).items() if not k.startswith("_") and k != "forward"})
    small._buffers.update(embedding._buffers)
    small.padding_idx = None if embedding.padding_idx is None else 1
    small.weight = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    ids = torch.tensor([[0, 3, 1]])
    with torch.no_grad():
        return bool(torch.equal(type(embedding).forward(small, ids), lookup(small, ids)))
