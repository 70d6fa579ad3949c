"""Layers that keep less for backward: norms and gated MLPs recompute what is cheap from what is kept anyway.

As Transformers writes it, an RMSNorm keeps its input in fp32, its normalised input and its output; a gated MLP keeps
both projections, the activation and their product. Here the norm keeps its input and a number a row, the MLP its two
projections: two fifths less memory a token in a Llama, and fewer passes over it.

Nothing is assumed of an architecture: a layer is replaced only if the function computes what the class's own
``forward`` computes on random numbers, gradients included.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]


class _RmsNorm(torch.autograd.Function):
    """x [..., H] / rms(x) times weight [H]; Gemma's kind (``shifted``) multiplies with 1 + weight before rounding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, shifted: bool) -> Tensor:
        wide = _wide(x)
        scale = torch.rsqrt(torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / x.shape[-1] + eps)
        ctx.save_for_backward(x, weight, scale)
        ctx.shifted = shifted
        normed = wide * scale
        return normed.mul_(1 + _wide(weight)).to(x.dtype) if shifted else normed.to(x.dtype) * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normed = _wide(x) * scale
        g = grads[0].to(normed.dtype, copy=True)
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (g * normed).flatten(0, -2).sum(0).to(weight.dtype)
        g.mul_(1 + _wide(weight) if ctx.shifted else weight)
        along = torch.linalg.vecdot(g, normed).div_(x.shape[-1])
        return g.sub_(normed.mul_(along[..., None])).mul_(scale).to(x.dtype), d_weight, None, None


class _Gated(torch.autograd.Function):
    """activation(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activation(gate) * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            active = ctx.activation(gate)
        (d_gate,) = torch.autograd.grad(active, gate, grads[0] * up)
        return d_gate, grads[0] * active.detach(), None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _llama_norm(self: Any, x: Tensor) -> Tensor:
    normed: Tensor = _RmsNorm.apply(x, self.weight, _eps(self), False)  # type: ignore[no-untyped-call]
    return normed


def _gemma_norm(self: Any, x: Tensor) -> Tensor:
    normed: Tensor = _RmsNorm.apply(x, self.weight, _eps(self), True)  # type: ignore[no-untyped-call]
    return normed


def _gated_mlp(self: Any, x: Tensor) -> Tensor:
    # Not through the activation's __call__: hooks of a module must not run once more in backward.
    gated = _Gated.apply(self.gate_proj(x), self.up_proj(x), self.act_fn.forward)  # type: ignore[no-untyped-call]
    down: Tensor = self.down_proj(gated)
    return down


def _eps(module: Any) -> float:
    found: float = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return found


def slim(model: nn.Module) -> dict[str, int]:
    """Replace the layers of ``model`` that compute one of the functions above; says how many of each class."""
    found: dict[type, Callable[[Any, Tensor], Tensor] | None] = {}
    replaced: dict[str, int] = {}
    for module in model.modules():
        kind = type(module)
        if kind not in found:
            candidates = (_llama_norm, _gemma_norm, _gated_mlp) if _is_small(module) else ()
            found[kind] = next((c for c in candidates if _computes(module, c)), None)
        forward = found[kind]
        if forward is not None:
            module.forward = MethodType(forward, module)
            replaced[kind.__name__] = replaced.get(kind.__name__, 0) + 1
    return replaced


def _is_small(module: nn.Module) -> bool:
    """Whether a stand-in of ``module`` shares no parameter with it: its children are linear layers or have none."""
    return all(isinstance(c, nn.Linear) or not any(True for _ in c.parameters()) for c in module.children())


_WIDTH = 16  # of the small layers that functions are compared on


def _computes(module: nn.Module, candidate: Callable[[Any, Tensor], Tensor]) -> bool:
    """Whether ``candidate`` gives what the module's class gives, outputs and gradients, in fp32 and in bf16."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    try:
        stand_in = _stand_in(module, random)
        x = random(1, 5, _WIDTH)
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
            results = []
            for forward in (type(module).forward, candidate):
                given = x.to(dtype).requires_grad_()
                stand_in.to(dtype)
                inputs = (given, *stand_in.parameters())
                with torch.enable_grad():  # whatever the caller is about
                    out = forward(stand_in, given)
                    results.append((out, *torch.autograd.grad((out * (0.3 + x.to(dtype))).sum(), inputs)))
            if any(not _close(a, b, tolerance) for a, b in zip(*results, strict=True)):
                return False
    except Exception:  # another kind of layer may do anything with such a stand-in
        return False
    return True


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * (1 + b.abs().max()))


def _stand_in(module: nn.Module, random: Callable[..., Tensor]) -> Any:
    """A small module of the same class: the parameters of the real one may be sharded away."""
    stand_in = type(module).__new__(type(module))
    nn.Module.__init__(stand_in)
    stand_in.__dict__.update({k: v for k, v in vars(module).items() if not k.startswith("_") and k != "forward"})
    for name in module._parameters:
        setattr(stand_in, name, nn.Parameter(random(_WIDTH)))
    for name, child in module.named_children():
        small = nn.Linear(_WIDTH, _WIDTH, bias=False) if isinstance(child, nn.Linear) else child
        if isinstance(small, nn.Linear):
            small.weight = nn.Parameter(random(_WIDTH, _WIDTH) / 4)
        setattr(stand_in, name, small)
    return stand_in
