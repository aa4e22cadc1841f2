"""Layers that bitsandbytes quantised, read from what transformers wrote of them: the same bytes, the same weights.

Beside the packed weight of a layer lie its scales and a little JSON in bytes (`weight.quant_state.bitsandbytes__nf4`).
Here those tensors become a `Quantised` layer; nothing is rounded again. What ludus writes is not here: it
writes dense weights, which every program reads.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ludus.adapters import int8, nf4
from ludus.adapters.kernels import Choice
from ludus.adapters.quantised import Quantised
from ludus.base.errors import CheckpointError
from ludus.optim import dynamic

STATE = "weight.quant_state.bitsandbytes__"


def is_quantised(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether the tensors of a layer, by their names in it, are a quantised weight's."""
    return "weight.absmax" in tensors or "SCB" in tensors


def from_bitsandbytes(tensors: Mapping[str, Tensor], *, kernel: Choice = "auto") -> Quantised:
    """Return the layer of some tensors, which go by their names within it: `weight`, `weight.absmax`, `bias` and so on.

    Raises:
        CheckpointError: they are quantised in a way that is not read: fp4, or in blocks of another size.
    """
    bias = tensors.get("bias")
    if "SCB" in tensors:
        code = int8.Int8(tensors["weight"].to(torch.int8), tensors["SCB"].float().view(-1))
        return Quantised(code, (code.codes.shape[0], code.codes.shape[1]), bias, kernel)
    state = _state(tensors)
    shape = state["shape"]
    packed = tensors["weight"].contiguous().view(torch.uint8).view(-1)
    return Quantised(_nf4(tensors, packed, state), (shape[0], shape[1]), bias, kernel)


def _state(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    name = next((name for name in tensors if name.startswith(STATE)), None)
    if name is None:
        raise CheckpointError(f"a quantised weight lacks its {STATE}nf4; save the model with transformers again")
    state = json.loads(bytes(tensors[name].cpu().tolist()))
    kind, block, second = state.get("quant_type"), state.get("blocksize"), state.get("nested_blocksize", nf4.SCALES)
    levels = torch.tensor(nf4.LEVELS)
    if (kind, block, second) != ("nf4", nf4.BLOCK, nf4.SCALES) or not torch.equal(
        tensors["weight.quant_map"].cpu().float(), levels
    ):
        raise CheckpointError(
            f"weights are quantised as {kind} in blocks of {block} and {second}; ludus reads nf4 in blocks of "
            f"{nf4.BLOCK} and {nf4.SCALES}; turn them back with transformers (model.dequantize()) and save that"
        )
    return state


def _nf4(tensors: Mapping[str, Tensor], packed: Tensor, state: Mapping[str, Any]) -> nf4.Nf4:
    scales = tensors["weight.absmax"]
    if "weight.nested_absmax" not in tensors:
        return nf4.Nf4(packed, scales.float(), None, None)
    levels = tensors["weight.nested_quant_map"].float()
    usual = torch.equal(levels.cpu(), dynamic.levels())
    offset = torch.tensor(float(state["nested_offset"]), device=packed.device)
    return nf4.Nf4(packed, scales, tensors["weight.nested_absmax"].float(), offset, None if usual else levels)
