"""Frozen linear layers that keep their weights in four or eight bits, under adapters (QLoRA, arXiv 2305.14314).

The weights are turned back for each product, forward and backward, and never kept: only the gradient of the input is
computed. How weights become bytes is in `ludus.adapters.nf4` and `ludus.adapters.int8`, and which kernels turn them
back in `ludus.adapters.kernels`.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ludus.adapters import int8, kernels, nf4
from ludus.adapters.kernels import Choice, Kernel
from ludus.model.transformer import Transformer

Kind = Literal["nf4", "int8"]
Code = nf4.Nf4 | int8.Int8
CODES: dict[str, type[Code]] = {"nf4": nf4.Nf4, "int8": int8.Int8}
WORDS = {"nf4": "nf4 with double quantisation", "int8": "int8 by rows"}


class Quantised(nn.Module):
    """A linear layer whose weights are bytes, and do not learn; its bias does not either.

    The bytes and their scales are buffers: they move with the module and are saved with it, but keep their dtypes.
    """

    bias: Tensor | None
    learns = False  # so that no checkpoint holds it

    def __init__(self, code: Code, shape: tuple[int, int], bias: Tensor | None = None, kernel: Choice = "auto") -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        self.kind: Kind = "nf4" if isinstance(code, nf4.Nf4) else "int8"
        self.wanted = kernel
        for name, tensor in code._asdict().items():
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if bias is None else bias.detach())

    @property
    def kernel(self) -> Kernel:
        """What turns the weights back where the module is now."""
        return kernels.choose(self.kind, self.wanted, self.code[0].device.type)

    @property
    def code(self) -> Code:
        """The bytes and scales."""
        kind = CODES[self.kind]
        return kind(*(getattr(self, name) for name in kind._fields))

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weights (out, in), made anew."""
        code = self.code
        kernel = kernels.choose(self.kind, self.wanted, code[0].device.type)
        return kernels.decode(code, (self.out_features, self.in_features), dtype, kernel)

    def linear(self, x: Tensor) -> Tensor:
        """Map the last dimension, in the dtype of the surrounding autocast or else of `x`, without keeping weights."""
        kind = x.device.type
        narrowing = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if narrowing else x.dtype
        x = x.to(dtype)
        if torch.is_grad_enabled() and x.requires_grad:
            return _Product.apply(x, self)  # type: ignore[return-value]
        return F.linear(x, self.dense(dtype), self._bias(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Map the last dimension."""
        return self.linear(x)

    def extra_repr(self) -> str:
        """Return what a print of the module says of it."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.kind} by {self.kernel}"

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        return None if self.bias is None else self.bias.to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Move, but keep the scales' dtypes: in another they would stand for other weights."""
        for name in CODES[self.kind]._fields:
            before = getattr(self, name)
            if before is not None:
                after = fn(before)
                setattr(self, name, after if after.dtype == before.dtype else before.to(after.device))
        if self.bias is not None:
            self.bias = fn(self.bias)
        return self


class _Product(torch.autograd.Function):
    """A product with weights that are made for it, and made again for the gradient of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Quantised) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dense(x.dtype), layer._bias(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient @ ctx.layer.dense(gradient.dtype), None


def quantise(layer: nn.Linear, kind: Kind, *, kernel: Choice = "auto") -> Quantised:
    """Return the layer with its weights in `kind`; the layer itself is left as it is.

    Raises:
        MissingExtra: bitsandbytes was asked for and is not installed.
    """
    weight = layer.weight
    code = nf4.encode(weight) if kind == "nf4" else int8.encode(weight)
    kernels.choose(kind, kernel, weight.device.type)
    return Quantised(code, (layer.out_features, layer.in_features), layer.bias, kernel).train(layer.training)


def quantiser(kind: Kind, *, kernel: Choice = "auto") -> Callable[[str, nn.Linear], nn.Module]:
    """Return what turns one named layer into a quantised one, for `exchange.load(linear=...)`."""
    return lambda name, layer: quantise(layer, kind, kernel=kernel)


def quantise_model(model: Transformer, kind: Kind, *, kernel: Choice = "auto") -> Transformer:
    """Quantise every linear layer of the blocks, in place, one after the other; embedding and head stay."""
    for owner in list(model.layers.modules()):
        for name, child in list(owner.named_children()):
            if type(child) is nn.Linear:
                setattr(owner, name, quantise(child, kind, kernel=kernel))
    return model


class Held(NamedTuple):
    """What the quantised layers of a model hold."""

    weights: int
    bytes: int  # codes and scales, without biases


def held(model: nn.Module) -> Held:
    """Count the weights in quantised layers, and the bytes they take."""
    layers = [module for module in model.modules() if isinstance(module, Quantised)]
    size = sum(tensor.nbytes for layer in layers for tensor in layer.code if tensor is not None)
    return Held(sum(layer.in_features * layer.out_features for layer in layers), size)


def describe(model: nn.Module) -> str:
    """Say how the layers are quantised and by what, in one line; nothing where none is."""
    found = Counter((module.kind, module.kernel) for module in model.modules() if isinstance(module, Quantised))
    if not found:
        return ""
    weights, size = held(model)
    kinds = ", ".join(f"{WORDS[kind]} by {kernels.name(kernel)}" for kind, kernel in found)  # type: ignore[arg-type]
    return f"{kinds}: {found.total()} layers, {size * 8 / weights:.3f} bits per weight"
