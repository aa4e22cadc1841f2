"""IA3: one learned factor for each channel that leaves a frozen layer, or enters it (arXiv 2205.05638)."""

import torch
from torch import Tensor, nn

from ludus.adapters.peft_names import homes
from ludus.adapters.settings import Ia3Settings
from ludus.adapters.surgery import Adapter, Part, dense_weight, device_of, ends_with, put, targeted
from ludus.base.errors import ConfigError
from ludus.model.transformer import Transformer


class Ia3(Adapter):
    """Scale what a layer says, bias included, or what it hears where it is one of the `feedforward` (§3.3)."""

    def __init__(self, base: nn.Module, *, feedforward: bool) -> None:
        super().__init__()
        self.base, self.feedforward = base, feedforward
        channels: int = base.in_features if feedforward else base.out_features  # type: ignore[assignment]
        # One dimension: the optimizer then takes it for a scale, which is not decayed towards zero.
        self.ia3_l = nn.Parameter(torch.ones(channels, device=device_of(base)))

    def forward(self, x: Tensor) -> Tensor:
        """Map x through the layer, with its factors on one side of it."""
        if self.feedforward:
            return self.base((x * self.ia3_l).to(x.dtype))
        found = self.base(x)
        return (found * self.ia3_l).to(found.dtype)

    def merged(self) -> Tensor:
        """Return W with its rows scaled, or its columns."""
        weight = dense_weight(self.base)
        return weight * (self.ia3_l if self.feedforward else self.ia3_l[:, None])

    def merged_bias(self) -> Tensor | None:
        """Return the bias, scaled as the outputs are."""
        bias: Tensor | None = self.base.bias  # type: ignore[assignment]
        return bias if bias is None or self.feedforward else bias.float() * self.ia3_l

    def parts(self) -> tuple[Part, ...]:
        """Return the one vector, which PEFT keeps as a column, or as a row before a layer."""
        return (Part("ia3_l", "ia3_l", rows=not self.feedforward),)


def ia3(model: Transformer, settings: Ia3Settings, *, seed: int = 0) -> Transformer:
    """Freeze a model and give its layers factors of one, in place; it computes what it did before. Nothing is drawn.

    Raises:
        ConfigError: a target is no linear layer of the model, or a feed-forward layer is none of the targets
            or only part of a matrix.
    """
    chosen = targeted(model, settings.targets)
    for name in settings.feedforward:
        if not any(ends_with(layer, name) for layer in chosen):
            raise ConfigError(f"adapter.feedforward has {name}, which is none of adapter.targets; add it there")
    inner = {layer for layer in chosen if any(ends_with(layer, name) for name in settings.feedforward)}
    for home in homes(model.shape, inner):
        if not inner.issuperset(home.sources):
            raise ConfigError(
                f"{', '.join(home.sources)} are one matrix in files of this family, whose inputs can only be scaled "
                "together; name all of them in adapter.feedforward and adapter.targets, or none"
            )

    def maker(name: str):
        return lambda layer: Ia3(layer, feedforward=name in inner)

    return put(model, {name: maker(name) for name in chosen})
