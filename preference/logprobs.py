"""Log-probs of given tokens without ever holding [B, T, V] logits; the one scoring path of reference AND trainer.

``attach(model)`` swaps a Hugging Face causal LM's output projection for a ``LogProbHead`` that shares its weight and
projects only the positions asked for, ``chunk`` rows at a time. The projection runs inside the head's ``forward``, so
ZeRO-3's hooks gather the weight there (also when it is tied to the input embedding), and backward recomputes the
logits chunk by chunk. Matrix products run in the model's dtype, everything after them in fp32: summing or normalising
log-probs in bf16 is wrong by whole nats at real lengths.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from preference.batching import PackedRows


class _ChunkedLogProb(torch.autograd.Function):
    """log softmax(cap(scale * (hidden @ weight.T + bias)))[target], a chunk of rows at a time.

    Shapes: hidden [N, H], weight [V, H], bias [V] or None, target [N] -> [N] in fp32 (fp64 for fp64 inputs).
    Peak extra memory is one [chunk, V] matrix in forward and two in backward, whatever N is.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        chunk: int,
        scale: float,
        softcap: float,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, target)
        ctx.chunk, ctx.scale, ctx.softcap = chunk, scale, softcap
        out = torch.empty(hidden.shape[0], dtype=_wide(hidden), device=hidden.device)
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            logits, _ = _logits(hidden[rows], weight, bias, scale, softcap)
            picked = logits.gather(1, target[rows, None]).squeeze(1)
            out[rows] = picked - torch.logsumexp(logits, dim=1)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        hidden, weight, bias, target = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        # Chunks of the weight's gradient add up in fp32: bf16 accumulation loses the small ones.
        grad_weight = torch.zeros(weight.shape, dtype=_wide(hidden), device=weight.device)
        grad_bias = torch.zeros(bias.shape, dtype=_wide(hidden), device=bias.device) if bias is not None else None
        for start in range(0, hidden.shape[0], ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            logits, tanh = _logits(hidden[rows], weight, bias, ctx.scale, ctx.softcap)
            d = torch.softmax(logits, dim=1).neg_()
            d.scatter_add_(1, target[rows, None], torch.ones_like(d[:, :1]))
            d *= grad[rows, None]
            if tanh is not None:
                d *= 1 - tanh.square()
            d *= ctx.scale
            if grad_bias is not None:
                grad_bias += d.sum(0)
            d = d.to(hidden.dtype)
            grad_hidden[rows] = d @ weight
            grad_weight += d.T @ hidden[rows]
        return (
            grad_hidden,
            grad_weight.to(weight.dtype),
            grad_bias.to(weight.dtype) if grad_bias is not None else None,
            None,
            None,
            None,
            None,
        )


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float
) -> tuple[Tensor, Tensor | None]:
    """fp32 logits [n, V] and, where they are capped, the tanh that backward needs."""
    logits = (hidden @ weight.T).to(_wide(hidden))
    if bias is not None:
        logits += bias
    if scale != 1.0:
        logits *= scale
    if not softcap:
        return logits, None
    tanh = torch.tanh(logits / softcap)
    return tanh * softcap, tanh


def chunked_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    chunk: int = 256,
    scale: float = 1.0,
    softcap: float = 0.0,
) -> Tensor:
    """Differentiable log-probs [N] of ``target`` [N] given ``hidden`` [N, H]; see ``_ChunkedLogProb``."""
    apply: Any = _ChunkedLogProb.apply
    out: Tensor = apply(hidden, weight, bias, target, chunk, scale, softcap)
    return out


class LogProbHead(nn.Module):
    """Takes the place of ``lm_head``: same parameters under the same names, log-probs instead of logits."""

    def __init__(self, projection: nn.Module, chunk: int, scale: float = 1.0, softcap: float = 0.0) -> None:
        super().__init__()
        weight, bias = projection.weight, getattr(projection, "bias", None)
        assert isinstance(weight, nn.Parameter)
        self.weight = weight
        self.bias = bias if isinstance(bias, nn.Parameter) else None
        self.chunk, self.scale, self.softcap = chunk, scale, softcap

    def forward(self, hidden: Tensor, target: Tensor) -> Tensor:
        return chunked_logprobs(
            hidden, self.weight, self.bias, target, chunk=self.chunk, scale=self.scale, softcap=self.softcap
        )


class LogProbModel(nn.Module):
    """A causal LM that answers with the log-probs of a packed batch's response tokens.

    ``forward(...)`` -> [N] fp32, in the order of ``PackedRows.target``. Takes plain tensors, because ZeRO-3's hooks
    look for tensors among a module's arguments.
    """

    def __init__(self, causal_lm: Any, chunk: int = 256) -> None:
        super().__init__()
        config = causal_lm.config
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1)
        softcap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
        causal_lm.lm_head = LogProbHead(causal_lm.get_output_embeddings(), chunk, scale, softcap)
        self.lm = causal_lm

    def forward(self, input_ids: Tensor, position_ids: Tensor, mask: Tensor, source: Tensor, target: Tensor) -> Tensor:
        hidden = self.lm.base_model(
            input_ids=input_ids, position_ids=position_ids, attention_mask=mask, use_cache=False
        ).last_hidden_state
        logps: Tensor = self.lm.lm_head(hidden.flatten(0, 1)[source], target)
        return logps

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.lm.dtype
        return dtype


def model_inputs(rows: PackedRows, dtype: torch.dtype, device: torch.device | str) -> dict[str, Tensor]:
    """The arguments of ``LogProbModel.forward`` for ``rows``, on ``device``."""
    return {
        "input_ids": torch.from_numpy(rows.input_ids).to(device),
        "position_ids": torch.from_numpy(rows.position_ids).to(device),
        "mask": attention_mask(rows, dtype, device),
        "source": torch.from_numpy(rows.source).to(device),
        "target": torch.from_numpy(rows.target).to(device),
    }


def attention_mask(rows: PackedRows, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Additive mask [R, 1, T, T]: a token sees its own prompt and its own response up to itself, nothing else.

    Built from lengths (group and branch numbers), never from pad ids. A padding position sees itself only, so that
    no row of the softmax is empty.
    """
    group = torch.from_numpy(rows.group).to(device)
    branch = torch.from_numpy(rows.branch).to(device)
    order = torch.arange(rows.input_ids.shape[1], device=device)
    same_group = (group[:, :, None] == group[:, None, :]) & (group[:, :, None] >= 0)
    same_branch = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    causal = order[:, None] >= order[None, :]
    visible = (same_group & same_branch & causal) | (order[:, None] == order[None, :])
    mask = torch.zeros(visible.shape, dtype=dtype, device=device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def self_test(model: Any, vocab_size: int, chunk: int = 256, tolerance: float = 1e-4) -> float:
    """Compare the packed, chunked path with plain ``model(...).logits`` on a few rows; return the largest difference.

    ``model`` is a Hugging Face causal LM in fp32, not yet wrapped, and comes back as it was. Raises RuntimeError above
    ``tolerance`` nats a token: an architecture whose attention does not honour an explicit mask (sliding windows per
    layer, recurrent layers ...) is refused rather than trained wrongly.
    """
    from preference.batching import Example, pack_rows

    generator = torch.Generator().manual_seed(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(int(x) for x in torch.randint(0, vocab_size, (n,), generator=generator))

    examples = [Example(ids(p), (ids(a), ids(b))) for p, a, b in ((7, 5, 9), (12, 1, 6), (3, 8, 8))]
    rows = pack_rows(examples, [[0, 1], [2]])
    device = next(model.parameters()).device
    head = model.get_output_embeddings()
    plain: list[Tensor] = []
    with torch.no_grad():
        for index in (0, 1, 2):
            for response in examples[index].responses:
                tokens = torch.tensor([examples[index].prompt + response], device=device)
                logps = model(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)[0, :-1]
                start = len(examples[index].prompt) - 1
                plain.append(logps[start:].gather(1, tokens[0, 1 + start :, None])[:, 0])
        wrapped = LogProbModel(model, chunk)
        packed = wrapped(**model_inputs(rows, wrapped.dtype, device))
    model.lm_head = head
    worst = float((packed - torch.cat(plain)).abs().max())
    if not worst <= tolerance:
        raise RuntimeError(
            f"self-test: packed log-probs of {type(model).__name__} differ from model(...).logits by {worst:.2e} nats "
            f"a token (limit {tolerance:.0e}): this architecture cannot be trained packed"
        )
    return worst
