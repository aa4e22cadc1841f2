"""LoRA: a frozen linear layer plus a low-rank change (arXiv 2106.09685), the identity until it is trained.

How it is multiplied is in `lowrank.py`, with what else it may start from in `initialise.py`.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ludus.adapters.lowrank import Fixed, LowRank, multiply
from ludus.adapters.settings import LoraSettings
from ludus.adapters.surgery import LINEAR, Adapter, Part, dense_weight, fitting, replace
from ludus.base.seeds import derive_seed
from ludus.model.norms import narrowed
from ludus.model.transformer import Transformer


class Lora(Adapter):
    """Compute W x + scale B A dropout(x) (eq. 3); A is drawn, B starts at zero.

    `scale` is alpha / rank, or alpha / sqrt(rank) where it is stabilised (rsLoRA, arXiv 2312.03732). A and B are
    float32 whatever the base is in. A change that began at `start_A` and `start_B` counts from there (PiSSA).
    """

    start_A: Tensor | None  # noqa: N815 - the field's names
    start_B: Tensor | None  # noqa: N815

    def __init__(self, base: nn.Module, settings: LoraSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.rank, self.alpha = base, settings.rank, settings.alpha
        self.rank_stabilised = settings.rank_stabilised
        self.scale = self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)
        like = _like(base)
        self.lora_A = _undrawn(base.in_features, self.rank, like)  # type: ignore[arg-type]
        self.lora_B = _undrawn(self.rank, base.out_features, like)  # type: ignore[arg-type]
        self.dropout = nn.Dropout(settings.dropout)
        self.register_buffer("start_A", None)
        self.register_buffer("start_B", None)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Add the change to what the frozen layer says."""
        product = self.product()
        if product is not None:
            narrow = narrowed(x)
            if torch.is_grad_enabled() or product.folds(narrow):
                return multiply(product, narrow)
        return self.spelled_out(x)

    def spelled_out(self, x: Tensor) -> Tensor:
        """Compute the same by the formula; the frozen layer and both factors may be under surgery themselves."""
        out = self.base(x)
        return out + (self.change(self.dropout(x)) * self.scale).to(out.dtype)

    def change(self, x: Tensor) -> Tensor:
        """Return B A x, less what it began with."""
        x = self._fitting(x)
        found = self.lora_B(self.lora_A(x))
        if self.start_A is not None and self.start_B is not None:
            found = found - F.linear(F.linear(x, self.start_A), self.start_B)
        return found

    def product(self) -> LowRank | None:
        """Return how to multiply without a graph; None where dropout or other surgery is in the way."""
        layers = (self.base, self.lora_A, self.lora_B)
        plain = type(self.base) in LINEAR and type(self.lora_A) is nn.Linear is type(self.lora_B)
        if not plain or any("forward" in vars(layer) for layer in (self, *layers)):
            return None
        if (self.training and self.dropout.p > 0) or any(each.requires_grad for each in self.base.parameters()):
            return None
        return LowRank(self.base, self.scale, self._learned(), self._fixed(), self._squares())

    def merged(self) -> Tensor:
        """Return W + scale B A, multiplied in float32."""
        wide = _wider(dense_weight(self.base))
        change = self.lora_B.weight.to(wide.dtype) @ self.lora_A.weight.to(wide.dtype)
        if self.start_A is not None and self.start_B is not None:
            change = change - self.start_B.to(wide.dtype) @ self.start_A.to(wide.dtype)
        return wide + change * self.scale

    def parts(self) -> tuple[Part, ...]:
        """Return both factors; A belongs to all rows."""
        return (Part("lora_A.weight", "lora_A.weight", False), Part("lora_B.weight", "lora_B.weight", True))

    def begin(self, A: Tensor, B: Tensor, *, counted: bool) -> None:  # noqa: N803 - the field's names
        """Start at these factors; a change that is `counted` from them is none yet."""
        with torch.no_grad():
            self.lora_A.weight.copy_(A)
            self.lora_B.weight.copy_(B)
            if counted:
                self.start_A, self.start_B = self.lora_A.weight.clone(), self.lora_B.weight.clone()

    def _learned(self) -> tuple[Tensor, ...]:
        return self.lora_A.weight, self.lora_B.weight

    def _fixed(self) -> Fixed | None:
        return None if self.start_A is None or self.start_B is None else Fixed(self.start_A, self.start_B)

    def _squares(self) -> Tensor | None:
        """Return the squared lengths of the frozen rows, for kinds that need them."""
        return None

    def _fitting(self, x: Tensor) -> Tensor:
        """Bring x to the dtype of the factors; those packed to draw tokens do it themselves."""
        return fitting(x, self.lora_A.weight) if type(self.lora_A) is nn.Linear else x

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Make room for what a change began with, where a state has it."""
        for name in ("start_A", "start_B"):
            if f"{prefix}{name}" in state and getattr(self, name) is None:
                setattr(self, name, torch.empty_like(state[f"{prefix}{name}"], device=self.lora_A.weight.device))
        super()._load_from_state_dict(state, prefix, *rest)


def lora(model: Transformer, settings: LoraSettings, *, seed: int) -> Transformer:
    """Freeze a model and give it LoRA adapters, in place; it computes what it did before.

    Raises:
        ConfigError: a target is no linear layer of the model, or the model cannot start as asked.
    """
    return adapt(model, settings, Lora, seed=seed)


def adapt(model: Transformer, settings: LoraSettings, kind: type[Lora], *, seed: int) -> Transformer:
    """Do what `lora` does, with adapters of a kind."""
    if settings.initialise == "loftq":
        from ludus.adapters.initialise import loftq

        return loftq(model, settings, kind, seed=seed)
    generator = torch.Generator().manual_seed(derive_seed(seed, "lora"))
    replace(model, settings.targets, lambda layer: kind(layer, settings, generator))
    if settings.initialise == "pissa":
        from ludus.adapters.initialise import pissa

        pissa(model)
    return model


def _like(base: nn.Module) -> Tensor:
    """Return an empty tensor of the device and dtype that a layer's adapter has: float32, or as wide as the layer."""
    weight = base.weight if isinstance(base, nn.Linear) else base.code[0]  # type: ignore[index]
    dtype = torch.promote_types(weight.dtype, torch.float32) if weight.is_floating_point() else torch.float32
    return torch.empty(0, dtype=dtype, device=weight.device)


def _wider(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _undrawn(inputs: int, outputs: int, like: Tensor) -> nn.Linear:
    """Make a linear layer without drawing its weights, which would disturb the global generator."""
    layer = nn.Linear(inputs, outputs, bias=False, device="meta", dtype=like.dtype)
    layer.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=like.dtype, device=like.device))
    return layer
