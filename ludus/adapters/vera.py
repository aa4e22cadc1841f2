"""VeRA: two random matrices that every layer shares and that never change, and two vectors a layer that do.

The matrices are drawn as PEFT draws them, so that a file need not hold them (arXiv 2310.11454). They are no state
either: a checkpoint that goes on draws them again from their seed.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ludus.adapters.peft_names import homes
from ludus.adapters.settings import VeraSettings
from ludus.adapters.surgery import Adapter, Part, dense_weight, device_of, fitting, linears, replace, targeted
from ludus.model.transformer import Transformer


class Projection(nn.Module):
    """The pair of matrices, as large as the largest layer needs; a layer reads the part that fits."""

    A: Tensor
    B: Tensor

    def __init__(self, A: Tensor, B: Tensor) -> None:  # noqa: N803 - the field's names
        super().__init__()
        self.register_buffer("A", A, persistent=False)
        self.register_buffer("B", B, persistent=False)


class Vera(Adapter):
    """Compute W x + b * (B (d * (A dropout(x)))) (eq. 2); b starts at zero, d at a small number."""

    def __init__(self, base: nn.Module, settings: VeraSettings, projection: Projection) -> None:
        super().__init__()
        self.base, self.projection, self.row = base, projection, 0
        self.size: tuple[int, int] = base.out_features, base.in_features  # type: ignore[assignment]
        self.seed, self.initial = settings.projection_seed, settings.initial
        rank, device = projection.A.shape[0], device_of(base)
        self.vera_lambda_b = nn.Parameter(torch.zeros(self.size[0], device=device))
        self.vera_lambda_d = nn.Parameter(torch.full((rank,), settings.initial, device=device))
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Add the change to what the frozen layer says."""
        found, (inward, outward) = self.base(x), self._matrices()
        change = F.linear(fitting(self.dropout(x), inward), inward) * self.vera_lambda_d
        return (found + F.linear(change, outward) * self.vera_lambda_b).to(found.dtype)

    def merged(self) -> Tensor:
        """Return W + (b * B) (d * A)."""
        inward, outward = self._matrices()
        return dense_weight(self.base) + (self.vera_lambda_b[:, None] * outward) @ (
            self.vera_lambda_d[:, None] * inward
        )

    def parts(self) -> tuple[Part, ...]:
        """Return the two vectors; what lies between the matrices belongs to all rows."""
        return (Part("vera_lambda_b", "vera_lambda_b", True), Part("vera_lambda_d", "vera_lambda_d", False))

    def settle(self, row: int) -> None:
        """Read B from that row on, as PEFT does for the matrix that holds this layer."""
        self.row = row

    def _matrices(self) -> tuple[Tensor, Tensor]:
        outputs, inputs = self.size
        return self.projection.A[:, :inputs], self.projection.B[self.row : self.row + outputs]


def vera(model: Transformer, settings: VeraSettings, *, seed: int = 0) -> Transformer:
    """Freeze a model and give it VeRA adapters, in place; it computes what it did before.

    Nothing but the shared matrices is drawn, which have a seed of their own.

    Raises:
        ConfigError: a target is no linear layer of the model.
    """
    chosen = targeted(model, settings.targets)
    projection = draw(*largest(model, chosen), settings.rank, settings.projection_seed)
    projection.to(model.embed_tokens.weight.device)
    return replace(model, settings.targets, lambda layer: Vera(layer, settings, projection))


def largest(model: Transformer, chosen: Sequence[str]) -> tuple[int, int]:
    """Return the most outputs and inputs of the matrices on disk in which the chosen layers lie."""
    layers = linears(model)
    sizes = [
        (sum(layers[source].out_features for source in home.sources), layers[home.sources[0]].in_features)  # type: ignore[misc]
        for home in homes(model.shape, chosen)
    ]
    return max(outputs for outputs, _ in sizes), max(inputs for _, inputs in sizes)  # type: ignore[type-var,return-value]


def draw(outputs: int, inputs: int, rank: int, seed: int) -> Projection:
    """Draw the pair: A first, then B, each uniform with a variance of 2 over its columns (arXiv 1502.01852 eq. 10)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((rank, inputs), (outputs, rank))
    bounds = [math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(columns)) for _, columns in sizes]
    return Projection(
        *(torch.empty(size).uniform_(-at, at, generator=generator) for size, at in zip(sizes, bounds, strict=True))
    )
