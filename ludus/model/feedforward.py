"""The feed-forward of a layer: each position on its own, through a wider inner layer."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ludus.model.architecture import Activation, Architecture
from ludus.model.norms import narrowed

WORTH_REPEATING = 1 << 20  # entries of the inner layer; to activate so many again costs less than to keep them


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


class _Lean(torch.autograd.Function):
    """A whole feed-forward that keeps its input and its inner layer before the activation, and nothing else.

    The activation is made again on the way back, and so are the weights in the precision of the products.
    """

    @staticmethod
    def forward(ctx: Any, kind: Activation, x: Tensor, *weights: Tensor | None) -> Tensor:
        inner = [None if weight is None else F.linear(x, weight.to(x.dtype)) for weight in weights[:2]]
        ctx.save_for_backward(x, *inner, *weights)
        ctx.kind = kind
        return F.linear(activate(kind, *inner), weights[2].to(x.dtype))  # type: ignore[arg-type,union-attr]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, up, gate, of_up, of_gate, of_down = ctx.saved_tensors
        inner = [each.detach().requires_grad_() for each in (up, gate) if each is not None]
        with torch.enable_grad():
            active = activate(ctx.kind, *inner)
        found: list[Tensor | None] = [None, None, _product(gradient, active.detach(), of_down)]
        slopes = torch.autograd.grad(active, inner, gradient @ of_down.to(x.dtype))
        del active, inner
        arrived = None
        for place, (slope, weight) in enumerate(zip(slopes, (of_up, of_gate), strict=False)):
            found[place] = _product(slope, x, weight)
            arrived = slope @ weight.to(x.dtype) if arrived is None else arrived + slope @ weight.to(x.dtype)
        return None, arrived, *found


def _product(gradient: Tensor, inputs: Tensor, weight: Tensor) -> Tensor | None:
    """Return the gradient of a weight that mapped `inputs`; None for a frozen one."""
    return (gradient.flatten(0, -2).T @ inputs.flatten(0, -2)).to(weight.dtype) if weight.requires_grad else None


class FeedForward(nn.Module):
    """Widen, activate, narrow; `hidden` is the inner size, that of the architecture unless given."""

    def __init__(self, shape: Architecture, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or shape.hidden
        self.kind: Activation = shape.activation
        self.hidden = hidden
        self.gate_proj = nn.Linear(shape.width, hidden, bias=shape.mlp_bias) if self.kind == "swiglu" else None
        self.up_proj = nn.Linear(shape.width, hidden, bias=shape.mlp_bias)
        self.down_proj = nn.Linear(hidden, shape.width, bias=shape.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map each position on its own."""
        x = narrowed(x)
        if torch.is_grad_enabled() and self._is_plain and x.shape[:-1].numel() * self.hidden >= WORTH_REPEATING:
            gate = None if self.gate_proj is None else self.gate_proj.weight
            return _Lean.apply(self.kind, x, self.up_proj.weight, gate, self.down_proj.weight)  # type: ignore[return-value]
        gate = None if self.gate_proj is None else self.gate_proj(x)
        return self.down_proj(activate(self.kind, self.up_proj(x), gate))

    @property
    def _is_plain(self) -> bool:
        """Whether no layer is under surgery or has a bias."""
        layers = [each for each in (self.up_proj, self.gate_proj, self.down_proj) if each is not None]
        return all(type(each) is nn.Linear and each.bias is None and "forward" not in vars(each) for each in layers)
