"""LoRA: a frozen linear layer plus a low-rank change (arXiv 2106.09685), the identity until it is trained."""

import math

import torch
from torch import Tensor, nn

from ludus.adapters.settings import LoraSettings
from ludus.adapters.surgery import Adapter, replace
from ludus.base.seeds import derive_seed
from ludus.model.transformer import Transformer


class Lora(Adapter):
    """Compute W x + alpha / rank x B A dropout(x) (eq. 3); A is drawn, B starts at zero."""

    def __init__(self, base: nn.Linear, settings: LoraSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.lora_A = _undrawn(base.in_features, settings.rank, base.weight)
        self.lora_B = _undrawn(settings.rank, base.out_features, base.weight)
        self.dropout = nn.Dropout(settings.dropout)
        self.scale = settings.alpha / settings.rank
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Add the change to what the frozen layer says."""
        return self.base(x) + self.lora_B(self.lora_A(self.dropout(x))) * self.scale

    def merged(self) -> Tensor:
        """Return W + alpha / rank x B A, multiplied in float32."""
        change = self.lora_B.weight.float() @ self.lora_A.weight.float() * self.scale
        return (self.base.weight.float() + change).to(self.base.weight.dtype)


def lora(model: Transformer, settings: LoraSettings, *, seed: int) -> Transformer:
    """Freeze a model and give it LoRA adapters, in place; it computes what it did before.

    Raises:
        ConfigError: a target is no linear layer of the model.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "lora"))
    return replace(model, settings.targets, lambda layer: Lora(layer, settings, generator))


def _undrawn(inputs: int, outputs: int, like: Tensor) -> nn.Linear:
    """Make a linear layer without drawing its weights, which would disturb the global generator."""
    layer = nn.Linear(inputs, outputs, bias=False, device="meta", dtype=like.dtype)
    return layer.to_empty(device=like.device)
