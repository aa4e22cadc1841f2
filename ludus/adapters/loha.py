"""LoHa: the change of a layer is the product, entry by entry, of two low-rank matrices (arXiv 2108.06098).

Its rank may be the square of that of each, at twice the parameters of LoRA. The change is a full matrix, so it is added
to the frozen one before the layer runs, and made again on the way back instead of being kept.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ludus.adapters.settings import LohaSettings
from ludus.adapters.surgery import Adapter, Part, dense_weight, device_of, fitting, replace
from ludus.base.seeds import derive_seed
from ludus.model.transformer import Transformer

NAMES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


class Loha(Adapter):
    """Compute (W + alpha / rank (A1 B1) * (A2 B2)) x (proposition 1); B2 starts at zero."""

    def __init__(self, base: nn.Module, settings: LohaSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.scale = base, settings.alpha / settings.rank
        outputs, inputs, rank = base.out_features, base.in_features, settings.rank
        for name in NAMES:
            size = (outputs, rank) if name.endswith("a") else (rank, inputs)
            factor = torch.zeros(size)  # type: ignore[arg-type]
            if name != NAMES[-1]:
                nn.init.kaiming_uniform_(factor, a=math.sqrt(5), generator=generator)
            setattr(self, name, nn.Parameter(factor.to(device_of(base))))

    def forward(self, x: Tensor) -> Tensor:
        """Map x through the changed layer: in one product in float32; bfloat16 would round small changes away."""
        change = _Hadamard.apply(self.scale, *self._factors())
        narrow = torch.is_autocast_enabled(x.device.type)
        if type(self.base) is nn.Linear and self.base.weight.dtype == change.dtype and not narrow:
            return F.linear(fitting(x, change), self.base.weight + change, self.base.bias)
        found = self.base(x)
        return found + F.linear(fitting(x, change), change).to(found.dtype)

    def merged(self) -> Tensor:
        """Return W + alpha / rank (A1 B1) * (A2 B2)."""
        return dense_weight(self.base) + _change(self.scale, *self._factors())

    def parts(self) -> tuple[Part, ...]:
        """Return the four factors."""
        return tuple(Part(name, name, name.endswith("a")) for name in NAMES)

    def _factors(self) -> tuple[Tensor, ...]:
        return tuple(self.get_parameter(name) for name in NAMES)


def loha(model: Transformer, settings: LohaSettings, *, seed: int) -> Transformer:
    """Freeze a model and give it LoHa adapters, in place; it computes what it did before.

    Raises:
        ConfigError: a target is no linear layer of the model.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "loha"))
    return replace(model, settings.targets, lambda layer: Loha(layer, settings, generator))


def _change(scale: float, *factors: Tensor) -> Tensor:
    first, second = factors[0] @ factors[1], factors[2] @ factors[3]
    return first * second * scale


class _Hadamard(torch.autograd.Function):
    """The change, in the dtype of its factors, keeping nothing but them."""

    @staticmethod
    def forward(ctx: Any, scale: float, *factors: Tensor) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(*factors)
        with torch.autocast(factors[0].device.type, enabled=False):
            return _change(scale, *factors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        a1, b1, a2, b2 = ctx.saved_tensors
        gradient = gradient.to(a1.dtype) * ctx.scale
        first, second = gradient * (a2 @ b2), gradient * (a1 @ b1)
        return None, first @ b1.T, a1.T @ first, second @ b2.T, a2.T @ second
