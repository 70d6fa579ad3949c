"""Attention over packed examples that share a prompt, as one of Transformers' attention functions.

A row holds examples one after the other, each ``[prompt | response 1 | response 2 ...]``. A response sees its prompt
and itself up to the token; nothing else. Sliding windows are measured in restarted positions, as if every response
stood right behind its prompt. Models call the function with their own scaling, window and soft-cap, so every
architecture that takes its attention from Transformers' registry is served without a mask of its own.

On CPU each response is one small, dense call of SDPA, in fp32: work grows with the examples' own squares, not with the
row's, and no [T, T] mask exists. On GPU it is one FlexAttention call with a block mask, which skips the same blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
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
    def length(self) -> int:
        """T: positions of the row, padding included."""
        return sum(self.prompts) + sum(map(sum, self.responses)) + self.padding

    def spans(self) -> tuple[tuple[slice, tuple[slice, ...]], ...]:
        """(positions that ask, stretches they see) of every causal sequence in the row; each position asks once.

        A prompt and its first response are one plain sequence; a later response asks about the prompt and itself.
        """
        if "spans" not in self._cache:
            found: list[tuple[slice, tuple[slice, ...]]] = []
            at = 0
            for prompt, fed in zip(self.prompts, self.responses, strict=True):
                start, at = at, at + prompt + sum(fed[:1])
                found.append((slice(start, at), (slice(start, at),)))
                for size in fed[1:]:
                    own = slice(at, at + size)
                    if size:
                        found.append((own, (slice(start, start + prompt), own)))
                    at += size
            self._cache["spans"] = tuple(found)
        spans: tuple[tuple[slice, tuple[slice, ...]], ...] = self._cache["spans"]
        return spans

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

    def mask(
        self, rows: slice, columns: tuple[slice, ...], window: int | None, like: Tensor
    ) -> tuple[Tensor | None, bool]:
        """SDPA's (attn_mask, is_causal) of one span; the mask is added to the scores."""
        asking, seen = rows.stop - rows.start, sum(c.stop - c.start for c in columns)
        if asking == seen and (window is None or window >= seen):
            return None, True
        key = ("mask", asking, seen, window, like.dtype)
        if key not in self._cache:
            allowed = self.allowed(asking, seen, window, like.device)
            self._cache[key] = torch.zeros(allowed.shape, dtype=like.dtype).masked_fill_(~allowed, -torch.inf)
        return self._cache[key], False

    def block_mask(self, window: int | None, device: torch.device) -> Any:
        """FlexAttention's block mask of the row, made once a forward pass and window."""
        from torch.nn.attention.flex_attention import create_block_mask

        key = (device, window)
        if key not in self._cache:
            length = self.length
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
    if not softcap:
        apply: Any = _SharedPrefix.apply
        attended: Tensor = apply(query, key, value, layout, scale, window)
        return attended
    # SDPA has no soft-cap: each response's attention is written out.
    out: list[Tensor] = []
    for rows, columns in layout.spans():
        k, v = _gather(key, columns), _gather(value, columns)
        out.append(_softcapped(query[:, :, rows], k, v, layout, scale, window, softcap))
    if layout.padding:
        out.append(torch.zeros_like(query[:, :, -layout.padding :]))
    return torch.cat(out, dim=2)


def _gather(x: Tensor, columns: tuple[slice, ...]) -> Tensor:
    """The stretches ``columns`` of the sequence; a view where they are one."""
    return x[:, :, columns[0]] if len(columns) == 1 else torch.cat([x[:, :, c] for c in columns], dim=2)


class _SharedPrefix(torch.autograd.Function):
    """SDPA of every response over its prompt and itself, in fp32, on CPU; shapes as in ``shared_prefix_attention``.

    fp32 for speed: in bf16 the CPU kernel runs a oneDNN product for every head and block, which takes twice the time,
    and its cache keeps a compiled product for every length it has ever seen. One function for the row: gradients of a
    prompt that several responses see add up in place, and only q, k, v and the output in the model's type are kept.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None
    ) -> Tensor:
        q, k, v = (_wide(x) for x in (query, key, value))
        # Positions lie outside of heads, as the output projection wants them: no copy after this.
        out = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3]).transpose(1, 2)
        normalisers = []
        for rows, columns in layout.spans():
            mask, causal = layout.mask(rows, columns, window, q)
            part, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, :, rows], _gather(k, columns), _gather(v, columns), 0.0, causal, attn_mask=mask, scale=scale
            )
            out[:, :, rows] = part
            normalisers.append(normaliser)
        if layout.padding:
            out[:, :, -layout.padding :] = 0
        ctx.layout, ctx.scale, ctx.window = layout, scale, window
        ctx.save_for_backward(query, key, value, out, *normalisers)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, *normalisers = ctx.saved_tensors
        q, k, v, o, g = (_wide(x) for x in (query, key, value, out, grads[0]))
        d_query, d_key, d_value = (torch.zeros_like(x) for x in (q, k, v))
        for (rows, columns), normaliser in zip(ctx.layout.spans(), normalisers, strict=True):
            mask, causal = ctx.layout.mask(rows, columns, ctx.window, q)
            dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                g[:, :, rows], q[:, :, rows], _gather(k, columns), _gather(v, columns), o[:, :, rows], normaliser,
                0.0, causal, attn_mask=mask, scale=ctx.scale,
            )  # fmt: skip
            d_query[:, :, rows] = dq
            at = 0
            for c in columns:
                size = c.stop - c.start
                d_key[:, :, c] += dk[:, :, at : at + size]
                d_value[:, :, c] += dv[:, :, at : at + size]
                at += size
        return d_query.to(query.dtype), d_key.to(key.dtype), d_value.to(value.dtype), None, None, None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _softcapped(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float, window: int | None, softcap: float
) -> Tensor:
    """softmax(cap tanh(q k / cap)) v, as Transformers' eager attention; causal for the last positions of ``k``."""
    allowed = layout.allowed(q.shape[2], k.shape[2], window, q.device)
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
