"""The feed-forward of a layer: each position on its own, through a wider inner layer."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

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


@runtime_checkable
class Product(Protocol):
    """A linear layer as a lean feed-forward runs it: the product and the way back, both without a graph.

    `learned` are the tensors that may get gradients; `keeps_output` asks for the layer's output on the way back. A
    layer that is not plain may offer one by a method `product()`, which returns None where it cannot be run so.
    """

    learned: tuple[Tensor, ...]
    keeps_output: bool

    def __call__(self, x: Tensor, learned: Sequence[Tensor]) -> Tensor:
        """Map the last dimension."""
        ...

    def back(
        self, gradient: Tensor, x: Tensor, output: Tensor | None, learned: Sequence[Tensor], of_input: bool
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """Return the gradient of what came in, if asked for, and those of `learned`."""
        ...


class _Plain:
    """A plain linear layer; its weight is converted to the precision of the products anew each time."""

    keeps_output = False

    def __init__(self, layer: nn.Linear) -> None:
        self.learned: tuple[Tensor, ...] = (layer.weight,)

    def __call__(self, x: Tensor, learned: Sequence[Tensor]) -> Tensor:
        return F.linear(x, learned[0].to(x.dtype))

    def back(
        self, gradient: Tensor, x: Tensor, output: Tensor | None, learned: Sequence[Tensor], of_input: bool
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        (weight,), of_weight = learned, None
        if weight.requires_grad:
            of_weight = (gradient.flatten(0, -2).T @ x.flatten(0, -2)).to(weight.dtype)
        return gradient @ weight.to(x.dtype) if of_input else None, [of_weight]


class _Lean(torch.autograd.Function):
    """A whole feed-forward that keeps its input and its inner layer before the activation, and nothing else.

    The activation is made again on the way back, and so are the weights in the precision of the products. Products come
    in the order up, gate (if there is one), down; their tensors follow one another.
    """

    @staticmethod
    def forward(ctx: Any, kind: Activation, products: list[Product], x: Tensor, *learned: Tensor) -> Tensor:
        *inward, (down, of_down) = _with_their_own(products, learned)
        inner = [product(x, own) for product, own in inward]
        out = down(activate(kind, *inner), of_down)
        ctx.save_for_backward(x, out if down.keeps_output else None, *inner, *learned)
        ctx.how = kind, products
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        kind, products = ctx.how
        x, out, *kept = ctx.saved_tensors
        count = len(products) - 1
        *inward, (down, of_down) = _with_their_own(products, kept[count:])
        inner = [each.detach().requires_grad_() for each in kept[:count]]
        with torch.enable_grad():
            active = activate(kind, *inner)
        of_active, last = down.back(gradient, active.detach(), out, of_down, True)
        slopes = torch.autograd.grad(active, inner, of_active)
        del active, inner, of_active
        arrived, found = None, []
        for slope, output, (product, own) in zip(slopes, kept, inward, strict=False):
            of_x, gradients = product.back(slope, x, output, own, ctx.needs_input_grad[2])
            arrived = of_x if arrived is None or of_x is None else arrived + of_x
            found += gradients
        return None, None, arrived, *found, *last


def _with_their_own(products: list[Product], learned: Sequence[Tensor]) -> list[tuple[Product, Sequence[Tensor]]]:
    """Deal the tensors of all products out to each."""
    found, start = [], 0
    for product in products:
        end = start + len(product.learned)
        found.append((product, learned[start:end]))
        start = end
    return found


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
        if torch.is_grad_enabled() and x.shape[:-1].numel() * self.hidden >= WORTH_REPEATING:
            products = self._products()
            if products is not None:
                learned = (tensor for product in products for tensor in product.learned)
                return _Lean.apply(self.kind, products, x, *learned)  # type: ignore[return-value]
        gate = None if self.gate_proj is None else self.gate_proj(x)
        return self.down_proj(activate(self.kind, self.up_proj(x), gate))

    def _products(self) -> list[Product] | None:
        """Return how the layers run without a graph; None where one of them cannot."""
        layers = [each for each in (self.up_proj, self.gate_proj, self.down_proj) if each is not None]
        found = [_product(layer) for layer in layers]
        return None if any(each is None for each in found) else found  # type: ignore[return-value]


def _product(layer: nn.Module) -> Product | None:
    if type(layer) is nn.Linear:
        return _Plain(layer) if layer.bias is None and "forward" not in vars(layer) else None
    offer = getattr(layer, "product", None)
    return None if offer is None else offer()
