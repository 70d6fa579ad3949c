"""Attention over packed examples that share a prompt, as one of Transformers' attention functions.

A row holds examples one after the other, each ``[prompt | response 1 | response 2 ...]``. A response sees its prompt
and itself up to the token; nothing else. Sliding windows are measured in restarted positions, as if every response
stood right behind its prompt. Models call the function with their own scaling, window and soft-cap, so every
architecture that takes its attention from Transformers' registry is served without a mask of its own.

On CPU each response is one small, dense call of SDPA: work grows with the examples' own squares, not with the row's,
and no [T, T] mask exists. On GPU it is one FlexAttention call with a block mask, which skips the same blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "rondo_shared_prefix"


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Lengths of what stands in a row: for each example its prompt and its responses' fed positions, in order."""

    prompts: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    padding: int = 0  # positions after the last example
    _cache: dict[Any, Any] = field(default_factory=dict)

    @property
    def pieces(self) -> list[int]:
        """Sizes of the stretches of the row, padding last; they add up to T."""
        sizes = [n for prompt, fed in zip(self.prompts, self.responses, strict=True) for n in (prompt, *fed)]
        return [*sizes, self.padding] if self.padding else sizes

    def coordinates(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """(example, branch, position) [T] each; example -1 for padding, branch 0 in a prompt, k in response k."""
        if device not in self._cache:
            example: list[int] = []
            branch: list[int] = []
            position: list[int] = []
            for e, (prompt, fed) in enumerate(zip(self.prompts, self.responses, strict=True)):
                for b, (start, size) in enumerate([(0, prompt), *((prompt, n) for n in fed)]):
                    example += [e] * size
                    branch += [b] * size
                    position += range(start, start + size)
            example += [-1] * self.padding
            branch += [0] * self.padding
            position += [0] * self.padding
            self._cache[device] = tuple(torch.tensor(x, device=device) for x in (example, branch, position))
        found: tuple[Tensor, Tensor, Tensor] = self._cache[device]
        return found

    def visible(self, q: Tensor, k: Tensor, window: int | None) -> Tensor:
        """Whether query index ``q`` sees key index ``k``; broadcasts, and is FlexAttention's mask function."""
        example, branch, position = self.coordinates(q.device)
        seen = (example[q] == example[k]) & ((branch[k] == 0) | (branch[q] == branch[k])) & (q >= k)
        if window is not None:
            seen = seen & (position[q] - position[k] < window)
        return seen

    def allowed(self, rows: int, columns: int, window: int | None, device: torch.device) -> Tensor:
        """bool [rows, columns] of one sequence whose last ``rows`` positions ask; made once for all layers."""
        key = (rows, columns, window, device)
        if key not in self._cache:
            q = torch.arange(columns - rows, columns, device=device)[:, None]
            k = torch.arange(columns, device=device)[None, :]
            self._cache[key] = (q >= k) if window is None else (q >= k) & (q - k < window)
        mask: Tensor = self._cache[key]
        return mask

    def block_mask(self, window: int | None, device: torch.device) -> Any:
        """FlexAttention's block mask of the row, made once a forward pass and window."""
        from torch.nn.attention.flex_attention import create_block_mask

        key = (device, window)
        if key not in self._cache:
            length = sum(self.pieces)
            self._cache[key] = create_block_mask(
                lambda b, h, q, k: self.visible(q, k, window), None, None, length, length, device=str(device)
            )
        return self._cache[key]


def register() -> str:
    """Make the function known to Transformers; returns the name to load a model with."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, shared_prefix_attention)
    return NAME


def shared_prefix_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query [1, H, T, D], key and value [1, K, T, D] (K divides H) -> [1, T, H, D].

    ``layout`` comes through the model's keyword arguments; a model that does not hand it on fails here, at once.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.is_cuda:
        out = _flex(query, key, value, layout, scale, sliding_window, softcap)
    else:
        out = _by_example(query, key, value, layout, scale, sliding_window, softcap)
    return out.transpose(1, 2).contiguous(), None


def _by_example(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    # One split, whose backward is one concatenation: slicing would write a gradient as long as the row for each slice.
    sizes = layout.pieces
    queries, keys, values = (torch.split(x, sizes, dim=2) for x in (query, key, value))
    out: list[Tensor] = []
    at = 0
    for fed in layout.responses:
        q, k, v = (x[at : at + 1 + len(fed)] for x in (queries, keys, values))
        first = 1 if fed else 0
        # The prompt and its first response are one plain causal sequence.
        first_q, first_k, first_v = (_join(x[: 1 + first]) for x in (q, k, v))
        out.append(_dense(layout, first_q, first_k, first_v, scale, window, softcap))
        for own in range(2, 1 + len(fed)):
            if fed[own - 1]:
                seen_k, seen_v = _join([k[0], k[own]]), _join([v[0], v[own]])
                out.append(_dense(layout, q[own], seen_k, seen_v, scale, window, softcap))
        at += 1 + len(fed)
    if layout.padding:
        out.append(torch.zeros_like(queries[-1]))
    return torch.cat(out, dim=2)


def _join(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(tuple(pieces), dim=2)


def _dense(
    layout: Layout, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Causal attention of the last ``q`` positions of a sequence over all its ``k`` positions."""
    rows, columns = q.shape[2], k.shape[2]
    if window is not None and window >= columns:
        window = None
    if softcap:
        return _softcapped(q, k, v, scale, layout.allowed(rows, columns, window, q.device), softcap)
    if rows == columns and window is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    mask = layout.allowed(rows, columns, window, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)


def _softcapped(q: Tensor, k: Tensor, v: Tensor, scale: float, allowed: Tensor, softcap: float) -> Tensor:
    """softmax(cap tanh(q k / cap)) v, as Transformers' eager attention: SDPA has no soft-cap."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = torch.tanh(q @ k.transpose(2, 3) * scale / softcap) * softcap
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v


def _flex(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    limit = softcap or 1.0

    def cap(score: Tensor, *_: Tensor) -> Tensor:
        return torch.tanh(score / limit) * limit

    out: Tensor = _compiled_flex()(
        query,
        key,
        value,
        score_mod=cap if softcap else None,
        block_mask=layout.block_mask(window, query.device),
        scale=scale,
        enable_gqa=True,
    )
    return out


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
