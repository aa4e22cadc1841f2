"""Matrix products in float8: surgery from outside that changes how a layer multiplies, and nothing that is saved.

Each operand is scaled by its own largest magnitude, worked out anew each time, to fill the range of its format: e4m3
for what goes forward, e5m2 for gradients (arXiv 2209.05433 §3). Sums are float32. Where a device cannot multiply float8
the same numbers may be had by emulation, which is for tests: it is slow.
"""

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEEDED = (8, 9)  # CUDA capability
MULTIPLE = 16  # rows and columns that a device multiplies at once
FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2


class Converted(NamedTuple):
    """The names of the linear layers that multiply in float8 now, and of those whose sizes do not allow it."""

    converted: list[str]
    left: list[str]


def float8(model: nn.Module, *, emulate: bool = False) -> Converted:
    """Let the linear layers of `model.layers` multiply in float8; embeddings, norms and the head stay as they are."""
    found = Converted([], [])
    for name, layer in model.layers.named_modules(prefix="layers"):  # type: ignore[union-attr]
        if type(layer) is not nn.Linear:
            continue
        fits = layer.in_features % MULTIPLE == 0 == layer.out_features % MULTIPLE
        (found.converted if fits else found.left).append(name)
        if fits:
            layer.forward = functools.partial(_forward, layer, emulate)  # type: ignore[assignment]
    return found


def quantise(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return x in float8 and the factor, float32, that gives it back."""
    largest = x.detach().abs().amax().float().clamp(min=1e-12)
    factor = largest / torch.finfo(kind).max
    limit = torch.finfo(kind).max
    return (x.float() / factor).clamp(-limit, limit).to(kind), factor


def _forward(layer: nn.Linear, emulate: bool, x: Tensor) -> Tensor:
    kind = x.device.type
    out = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    found = _Product.apply(x.flatten(0, -2), layer.weight, out, emulate).view(*x.shape[:-1], -1)  # type: ignore[union-attr]
    return found if layer.bias is None else found + layer.bias.to(out)


class _Product(torch.autograd.Function):
    """x @ weight.T, and both of its gradients, in float8."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, out: torch.dtype, emulate: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = out, emulate
        return _multiply(x, weight, FORWARD, out, emulate)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (x, weight), (out, emulate) = ctx.saved_tensors, ctx.how
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _multiply(gradient, weight.T, BACKWARD, out, emulate).to(x.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = _multiply(gradient.T, x.T, BACKWARD, out, emulate).to(weight.dtype)
        return of_x, of_weight, None, None


def _multiply(left: Tensor, right: Tensor, kind: torch.dtype, out: torch.dtype, emulate: bool) -> Tensor:
    """Return left @ right.T, `left` in the given format and `right` in the forward one."""
    if left.shape[1] % MULTIPLE:  # rows of a batch, when they are summed over: rare, and not worth padding
        return F.linear(left.to(out), right.to(out))
    (first, scale), (second, other) = quantise(left.contiguous(), kind), quantise(right.contiguous(), FORWARD)
    if emulate:
        return F.linear(first.float() * scale, second.float() * other).to(out)
    narrow = out if out in (torch.bfloat16, torch.float16) else torch.bfloat16
    found = torch._scaled_mm(first, second.T, scale_a=scale, scale_b=other, out_dtype=narrow)  # type: ignore[attr-defined]
    return found.to(out)
