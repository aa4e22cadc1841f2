"""The feed-forward of a layer: each position on its own, through a wider inner layer."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ludus.model.architecture import Activation, Architecture


class _SquaredRelu(torch.autograd.Function):
    """max(x, 0)^2, keeping one tensor for the way back instead of two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (positive,) = ctx.saved_tensors
        return (positive * gradient).mul_(2)


def activate(kind: Activation, up: Tensor, gate: Tensor | None = None) -> Tensor:
    """Apply the activation between the two layers: SwiGLU with its gate (arXiv 2002.05202 eq. 6), the others without.

    GELU is arXiv 1606.08415, exact or by its tanh; the squared ReLU is that of Primer (arXiv 2109.08668).
    """
    if gate is not None:
        return F.silu(gate) * up
    if kind == "relu2":
        return _SquaredRelu.apply(up)  # type: ignore[return-value]
    return F.gelu(up, approximate="tanh" if kind == "gelu_tanh" else "none")


class FeedForward(nn.Module):
    """Widen, activate, narrow; `hidden` is the inner size, that of the architecture unless given."""

    def __init__(self, shape: Architecture, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or shape.hidden
        self.kind: Activation = shape.activation
        self.gate_proj = nn.Linear(shape.width, hidden, bias=shape.mlp_bias) if self.kind == "swiglu" else None
        self.up_proj = nn.Linear(shape.width, hidden, bias=shape.mlp_bias)
        self.down_proj = nn.Linear(hidden, shape.width, bias=shape.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map each position on its own."""
        gate = None if self.gate_proj is None else self.gate_proj(x)
        return self.down_proj(activate(self.kind, self.up_proj(x), gate))
