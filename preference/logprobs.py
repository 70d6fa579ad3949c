"""Log-probs of given tokens without ever holding [B, T, V] logits; the one scoring path of reference AND trainer.

``attach(model)`` swaps a Hugging Face causal LM's output projection for a ``LogProbHead`` that shares its weight and
projects only the positions asked for, ``chunk`` rows at a time. The projection runs inside the head's ``forward``, so
ZeRO-3's hooks gather the weight there (also when it is tied to the input embedding), and backward recomputes the
logits chunk by chunk. Matrix products run in the model's dtype, everything after them in fp32: summing or normalising
log-probs in bf16 is wrong by whole nats at real lengths.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from preference.attention import Layout, register
from preference.batching import Example, Packed, pack
from preference.lean import slim
from preference.tied import share_gradient


class _ChunkedLogProb(torch.autograd.Function):
    """log softmax(cap(scale * (hidden @ weight.T + bias)))[target], a chunk of rows at a time.

    Shapes: hidden [N, H], weight [V, H], bias [V] or None, target [N] -> [N] in fp32 (fp64 for fp64 inputs), and
    log sum_v p(v)^2 [N] without a gradient ([0] unless ``collision``).
    Peak extra memory is a [chunk, V] matrix or two, whatever N is.
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
        collision: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.chunk, ctx.scale, ctx.softcap = chunk, scale, softcap
        out = torch.empty(hidden.shape[0], dtype=_wide(hidden), device=hidden.device)
        normaliser = torch.empty_like(out)
        squares = torch.empty_like(out) if collision else out.new_empty(0)
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            logits, _ = _logits(hidden[rows], weight, bias, scale, softcap)
            picked = logits.gather(1, target[rows, None]).squeeze(1)
            # log-sum-exp in place: torch.logsumexp would hold a second [chunk, V] matrix.
            greatest = logits.amax(1)
            total = logits.sub_(greatest[:, None]).exp_().sum(1).log_()
            normaliser[rows] = greatest + total
            out[rows] = picked - normaliser[rows]
            if collision:
                squares[rows] = logits.square_().sum(1).log_() - 2 * total
            del logits  # before there are the next
        ctx.save_for_backward(hidden, weight, bias, target, normaliser)
        ctx.mark_non_differentiable(squares)
        return out, squares

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Logits are made anew, for all rows and a slice of the vocabulary at a time.

        So each entry of the weight's gradient is one product over all rows, rounded once: chunks of rows would need a
        second, wider [V, H] matrix to add up in, and a pass over it for each of them.
        """
        hidden, weight, bias, target, normaliser = ctx.saved_tensors
        rows, vocabulary = len(hidden), len(weight)
        grad = grads[0][:, None]
        grad_hidden = torch.zeros_like(hidden, dtype=_wide(hidden))
        # Frozen, the weight has no gradient.
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        grad_bias = torch.empty_like(bias) if bias is not None else None
        # Half the memory of a chunk of forward's, because the gradient is there as well.
        size = max(ctx.chunk * vocabulary // max(rows, ctx.chunk) // 2, 1)
        size = min(-(-size // _SLICE) * _SLICE, vocabulary)
        for start in range(0, vocabulary, size):
            part = slice(start, start + size)
            bias_part = bias[part] if bias is not None else None
            d, tanh = _logits(hidden, weight[part], bias_part, ctx.scale, ctx.softcap)
            d.sub_(normaliser[:, None]).exp_().neg_()
            inside = ((target >= start) & (target < start + size)).nonzero()[:, 0]
            d[inside, target[inside] - start] += 1
            d *= grad
            if tanh is not None:
                d *= 1 - tanh.square_()
            if ctx.scale != 1.0:
                d *= ctx.scale
            if grad_bias is not None:
                grad_bias[part] = d.sum(0)
            d = d.to(hidden.dtype)
            grad_hidden += d @ weight[part]
            if grad_weight is not None:
                torch.mm(d.T, hidden, out=grad_weight[part])
            del d, tanh  # before there are the next
        return grad_hidden.to(hidden.dtype), grad_weight, grad_bias, *[None] * 5


_SLICE = 256  # slices of the vocabulary are multiples of this, so that few shapes occur


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
    collision: bool = False,
) -> tuple[Tensor, Tensor]:
    """Differentiable log-probs [N] of ``target`` [N] given ``hidden`` [N, H]; see ``_ChunkedLogProb``."""
    apply: Any = _ChunkedLogProb.apply
    out: tuple[Tensor, Tensor] = apply(hidden, weight, bias, target, chunk, scale, softcap, collision)
    return out


class LogProbHead(nn.Module):
    """Takes the place of ``lm_head``: same parameters under the same names, log-probs instead of logits."""

    def __init__(
        self, projection: nn.Module, chunk: int, scale: float = 1.0, softcap: float = 0.0, collision: bool = False
    ) -> None:
        super().__init__()
        weight, bias = projection.weight, getattr(projection, "bias", None)
        assert isinstance(weight, nn.Parameter)
        self.weight = weight
        self.bias = bias if isinstance(bias, nn.Parameter) else None
        self.chunk, self.scale, self.softcap, self.collision = chunk, scale, softcap, collision

    def forward(self, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return chunked_logprobs(
            hidden,
            self.weight,
            self.bias,
            target,
            chunk=self.chunk,
            scale=self.scale,
            softcap=self.softcap,
            collision=self.collision,
        )


class PackedModel(nn.Module):
    """A model whose trunk reads packed rows; what it says of them is its head's."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        lm.set_attn_implementation(register())
        slim(lm)
        self.lm = lm

    def hidden(self, input_ids: Tensor, position_ids: Tensor, layout: Layout) -> Tensor:
        """Hidden states [T, H] of a row's positions."""
        out = self.lm.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False, layout=layout)
        states: Tensor = out.last_hidden_state[0]
        return states


class LogProbModel(PackedModel):
    """A causal LM that answers with the log-probs of a packed row's response tokens.

    ``forward(...)`` -> ([N] fp32 log-probs in the order of ``Packed.target``, [N] log sum_v p(v)^2 or [0]). Takes plain
    tensors beside the layout, because ZeRO-3's hooks look for tensors among a module's arguments.
    """

    def __init__(self, causal_lm: Any, chunk: int = 256, collision: bool = False) -> None:
        super().__init__(causal_lm)
        config = causal_lm.config
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1)
        softcap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
        projection, embedding = causal_lm.get_output_embeddings(), causal_lm.get_input_embeddings()
        if embedding.weight is projection.weight:
            share_gradient(embedding)
        causal_lm.lm_head = LogProbHead(projection, chunk, scale, softcap, collision)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, source: Tensor, target: Tensor, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        hidden = self.hidden(input_ids, position_ids, layout)
        logps: tuple[Tensor, Tensor] = self.lm.lm_head(hidden[source], target)
        return logps

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.lm.dtype
        return dtype


# Rows are padded, so that few shapes occur: FlexAttention compiles for its block of 128, and oneDNN compiles a product
# for every shape it meets, which takes milliseconds and memory.
_TILE = {"cuda": 128, "cpu": 16}


def model_inputs(packed: Packed, device: torch.device | str) -> dict[str, Any]:
    """The arguments of ``LogProbModel.forward`` for ``packed``, on ``device``."""
    padding = -packed.tokens % _TILE[torch.device(device).type]
    fed = iter((packed.lengths - 1).tolist())
    responses = tuple(tuple(next(fed) for _ in range(packed.responses_each)) for _ in packed.prompts)
    ids, positions = (
        torch.tensor(np.pad(x, (0, padding))[None], device=device) for x in (packed.input_ids, packed.position_ids)
    )
    return {
        "input_ids": ids,
        "position_ids": positions,
        "source": torch.tensor(packed.source, device=device),  # copied: what Ray hands over is read-only
        "target": torch.tensor(packed.target, device=device),
        "layout": Layout(packed.prompts, responses, padding),
    }


def self_test(model: Any, vocab_size: int, chunk: int = 256, tolerance: float = 1e-4) -> float:
    """Compare the packed, chunked path with plain ``model(...).logits`` on a few rows; return the largest difference.

    ``model`` is a Hugging Face causal LM in fp32, not yet wrapped; it is wrapped afterwards. Raises RuntimeError above
    ``tolerance`` nats a token: an architecture that does not take its attention from Transformers' registry, or whose
    layers carry state from token to token in another way (recurrent ones), is refused rather than trained wrongly.
    """
    generator = torch.Generator().manual_seed(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(int(x) for x in torch.randint(0, vocab_size, (n,), generator=generator))

    examples = [Example(ids(p), (ids(a), ids(b))) for p, a, b in ((7, 5, 9), (12, 1, 26), (3, 18, 8))]
    device = next(model.parameters()).device
    name = type(model).__name__
    model.set_attn_implementation("eager")  # SDPA would leave out a soft-cap
    plain: list[Tensor] = []
    with torch.no_grad():
        for example in examples:
            for response in example.responses:
                tokens = torch.tensor([example.prompt + response], device=device)
                logps = model(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)[0, :-1]
                start = len(example.prompt) - 1
                plain.append(logps[start:].gather(1, tokens[0, 1 + start :, None])[:, 0])
        try:
            packed, _ = LogProbModel(model, chunk)(**model_inputs(pack(examples), device))
        except TypeError as error:
            raise RuntimeError(
                f"self-test: {name} cannot be trained packed: it does not hand its arguments on to its attention "
                f"({error})"
            ) from error
    worst = float((packed - torch.cat(plain)).abs().max())
    if not worst <= tolerance:
        raise RuntimeError(
            f"self-test: packed log-probs of {name} differ from model(...).logits by {worst:.2e} nats "
            f"a token (limit {tolerance:.0e}): this architecture cannot be trained packed"
        )
    return worst
