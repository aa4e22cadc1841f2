"""DoRA: LoRA on the direction of each row of weights, and the row's length learned apart (arXiv 2402.09353).

Lengths divide by those of the rows as they are now, which count as constants on the way back (§4.3). They come from
the expansion of |W + scale B A|^2 with |W|^2 kept, or from the weights themselves where those are there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ludus.adapters.lora import Lora, adapt
from ludus.adapters.lowrank import row_norms
from ludus.adapters.settings import DoraSettings, LoraSettings
from ludus.adapters.surgery import Part, dense_weight
from ludus.model.transformer import Transformer


class Dora(Lora):
    """Compute m (W + scale B A) x / |W + scale B A|, row by row (eq. 5); m starts as the lengths of the rows of W."""

    squares: Tensor

    def __init__(self, base: nn.Module, settings: LoraSettings, generator: torch.Generator) -> None:
        super().__init__(base, settings, generator)
        weight = dense_weight(base).to(self.lora_A.weight.dtype)
        self.register_buffer("squares", weight.square().sum(dim=1), persistent=False)
        self.lora_magnitude_vector = nn.Parameter(torch.linalg.vector_norm(weight, dim=1))
        self._known: tuple[tuple[int, ...], Tensor] | None = None  # lengths of rows, and the factors they belong to

    def spelled_out(self, x: Tensor) -> Tensor:
        """Compute the same by the formula, without making the weights; what is dropped is dropped for both terms."""
        out, entering = self.base(x), self._fitting(self.dropout(x))
        bias = 0.0 if self.base.bias is None else self.base.bias.to(out.dtype)  # type: ignore[operator,union-attr]
        plain = out - bias if entering is x else self.base(entering.to(x.dtype)) - bias
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            norms = self.norms()
        scales = self.lora_magnitude_vector / norms
        return (out + (scales - 1) * plain + scales * self.change(entering) * self.scale).to(out.dtype)

    def norms(self) -> Tensor:
        """Return the length of each row of W + scale B A; worked out once for factors that stay as they are."""
        packed = type(self.lora_A) is not nn.Linear  # by a copy that draws tokens and is never updated
        factors = () if packed else (self.lora_A.weight, self.lora_B.weight)
        state = tuple(number for each in factors for number in (each.data_ptr(), each._version))
        if self._known is None or not (packed or self._known[0] == state):
            with torch.inference_mode(False), torch.no_grad():  # a training step may read what a sample worked out
                self._known = state, self._norms()
        return self._known[1]

    def __copy__(self) -> "Dora":
        """Copy it with the lengths known: a copy may be packed, and then its weights can no longer be read."""
        with torch.no_grad(), torch.autocast(self.squares.device.type, enabled=False):
            self.norms()
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def _norms(self) -> Tensor:
        A, B = self.lora_A.weight, self.lora_B.weight * self.scale  # noqa: N806 - the field's names
        if self.start_A is not None and self.start_B is not None:
            A, B = torch.cat((A, self.start_A)), torch.cat((B, self.start_B * -self.scale), dim=1)  # noqa: N806
        return row_norms(dense_weight(self.base).to(A.dtype), self.squares, A, B)

    def merged(self) -> Tensor:
        """Return the rows of W + scale B A at their learned lengths, multiplied in float32."""
        return F.normalize(super().merged(), dim=1, eps=1e-30) * self.lora_magnitude_vector[:, None]

    def parts(self) -> tuple[Part, ...]:
        """Return both factors and the lengths."""
        return (*super().parts(), Part("lora_magnitude_vector", "lora_magnitude_vector", True))

    def begin(self, A: Tensor, B: Tensor, *, counted: bool) -> None:  # noqa: N803 - the field's names
        """Start at these factors, and at the lengths that go with them."""
        super().begin(A, B, counted=counted)
        with torch.no_grad():
            self.lora_magnitude_vector.copy_(torch.linalg.vector_norm(super().merged(), dim=1))

    def _learned(self) -> tuple[Tensor, ...]:
        return *super()._learned(), self.lora_magnitude_vector

    def _squares(self) -> Tensor | None:
        return self.squares


def dora(model: Transformer, settings: DoraSettings, *, seed: int) -> Transformer:
    """Freeze a model and give it DoRA adapters, in place; it computes what it did before.

    Raises:
        ConfigError: a target is no linear layer of the model, or the model cannot start as asked.
    """
    return adapt(model, settings, Dora, seed=seed)
