"""A model as decoding wants it: its matrices once in the precision of its products, as the processor reads them best.

Training keeps weights in float32 and converts them at every step; drawing a token does little else than read them. The
copy shares everything but the linear layers, computes bit for bit what the model computes, and knows nothing of later
updates: make it anew after each. Quantised weights are turned back in the copy, where that takes no more than a
gigabyte; above, they stay as they are, and are turned back for every token.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ludus.adapters.quantised import Quantised, held
from ludus.model.transformer import Transformer

WORTH_COPYING = 4  # tokens; for fewer the copy costs more than it saves
DENSE_BYTES = 1 << 30  # that quantised weights may take, turned back, while tokens are drawn


class Packed(nn.Module):
    """A linear layer for products in one low precision, without gradients.

    oneDNN's own layout reads twice as fast as rows for a few rows of input, with the same result.
    """

    def __init__(self, layer: nn.Linear | Quantised, precision: torch.dtype) -> None:
        super().__init__()
        weight = layer.dense(precision) if isinstance(layer, Quantised) else layer.weight.detach().to(precision)
        self.precision, self.packed = precision, _can_pack(weight, precision)
        if self.packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)
        self.weight, self.bias = weight, None if layer.bias is None else layer.bias.detach().to(precision)

    def forward(self, x: Tensor) -> Tensor:
        """Map the last dimension."""
        x = x.to(self.precision)
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


def lean(model: Transformer) -> Transformer:
    """Return a copy to draw tokens with, in evaluation mode; the model itself where there is nothing to win.

    That is where its products are in float32 and no layer is quantised. A copy is returned as it is. Layers under
    surgery are copied inside, around which the surgery stays.
    """
    dense = _to_turn_back(model)
    done = any(isinstance(module, Packed) for module in model.modules())
    if done or (model.precision == torch.float32 and not dense):
        return model
    with torch.no_grad():
        return _copied(model, model.precision, dense).eval()  # type: ignore[return-value]


def _to_turn_back(model: Transformer) -> bool:
    size = held(model).weights * model.precision.itemsize
    return 0 < size <= DENSE_BYTES


def _copied(module: nn.Module, precision: torch.dtype, dense: bool) -> nn.Module:
    """Copy the tree of modules, not their weights, with each linear layer packed; `dense`, the quantised ones too."""
    plain = type(module) is nn.Linear and precision != torch.float32
    if plain and module.weight.dtype in (torch.float32, precision):
        return Packed(module, precision)  # type: ignore[arg-type]
    if dense and isinstance(module, Quantised):
        return Packed(module, precision)
    twin = copy.copy(module)
    twin._modules = {name: child and _copied(child, precision, dense) for name, child in module._modules.items()}
    return twin


def _can_pack(weight: Tensor, precision: torch.dtype) -> bool:
    on_processor = weight.device.type == "cpu" and precision == torch.bfloat16
    return on_processor and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
