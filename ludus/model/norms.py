"""Normalisation of the residual stream and of heads: with weights, without, or centred as well."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ludus.model.architecture import Architecture


class RMSNorm(nn.Module):
    """Divide by the root mean square, then scale each channel (arXiv 1910.07467 eq. 4)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return divided(x, self.epsilon, self.weight)


class PlainNorm(nn.Module):
    """Divide by the root mean square; nothing is learned."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return divided(x, self.epsilon)


def divided(
    x: Float[Tensor, "*rows channels"], epsilon: float, weight: Float[Tensor, " channels"] | None = None
) -> Float[Tensor, "*rows channels"]:
    """Divide by the root mean square of the last dimension, in float32 or wider, and scale by the weight, if any.

    A GPU has a kernel for it; on a CPU, PyTorch works it out in seven passes and remembers four of them.
    """
    if x.is_cuda or not torch.is_grad_enabled():
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.rms_norm(x, x.shape[-1:], None if weight is None else weight.to(x.dtype), epsilon)
    return _Divided.apply(x, weight, epsilon)  # type: ignore[return-value]


class _Divided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_()
        inverse = square.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        normed = x * inverse
        ctx.save_for_backward(normed, inverse, weight)
        ctx.dtype = x.dtype
        return normed if weight is None else normed * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        normed, inverse, weight = ctx.saved_tensors
        product, of_weight = gradient * normed, None
        if weight is not None:
            of_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
            gradient, product = gradient * weight, product.mul_(weight)
        of_x = torch.addcmul(gradient, normed, product.mean(-1, keepdim=True), value=-1)
        return of_x.mul_(inverse).to(ctx.dtype), of_weight, None


def narrowed(x: Tensor) -> Tensor:
    """Convert to the precision of the matrix products that come next, once for all that read it."""
    kind = x.device.type
    runs = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return x.to(torch.get_autocast_dtype(kind)) if runs else x


def stream_norm(shape: Architecture) -> nn.Module:
    """Make the norm of an architecture's residual stream (LayerNorm is that of arXiv 1607.06450)."""
    if shape.norm == "layer":
        return nn.LayerNorm(shape.width, shape.norm_epsilon, bias=shape.norm_bias)
    return PlainNorm(shape.norm_epsilon) if shape.norm == "plain" else RMSNorm(shape.width, shape.norm_epsilon)


def head_norm(shape: Architecture) -> nn.Module | None:
    """Make the norm of an architecture's queries or keys, over the channels of one head (arXiv 2010.04245)."""
    if shape.qk_norm == "none":
        return None
    return PlainNorm(shape.norm_epsilon) if shape.qk_norm == "plain" else RMSNorm(shape.head_dim, shape.norm_epsilon)
