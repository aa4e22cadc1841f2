"""Weights in four bits: NormalFloat with double quantisation (QLoRA, arXiv 2305.14314 section 3), to and from bytes.

Blocks of 64 weights share a scale, their largest size; 256 scales, less the mean of all, are kept in eight bits and
share one float. Two weights lie in a byte, the first in its upper half. Bytes and values are bitsandbytes' own. It is
pure PyTorch and runs on any device; layers that keep their weights so are in `ludus.adapters.quantised`.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ludus.optim import dynamic

BLOCK = 64
SCALES = dynamic.BLOCK  # scales that share a float
PIECE = 1 << 22  # weights at a time, which bounds what is needed beside the result
PIECES = {"cpu": 1 << 18}  # where they should stay in the cache meanwhile
# Quantiles of the normal distribution, scaled to [-1, 1], with an exact zero (appendix E of the paper).
LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


class Nf4(NamedTuple):
    """A matrix in four bits: packed codes, and its scales in eight bits, or in float32 as others may have made them."""

    packed: Tensor  # uint8, half as many as weights, rounded up
    scales: Tensor  # uint8, or float32 where they were not quantised again; one for 64 weights
    coarse: Tensor | None  # float32, one for 256 scales
    offset: Tensor | None  # float32, 0-dim: the mean of the scales
    levels: Tensor | None = None  # float32, 256: what the bytes of the scales stand for, where not the usual


def encode(weight: Tensor) -> Nf4:
    """Quantise the weights, in the order they lie in."""
    flat = weight.detach().reshape(-1)
    count = flat.numel()
    packed = torch.empty((count + 1) // 2, dtype=torch.uint8, device=flat.device)
    largest = torch.empty(-(-count // BLOCK), dtype=torch.float32, device=flat.device)
    step = PIECES.get(flat.device.type, PIECE)
    for start in range(0, count, step):
        piece = flat[start : start + step].float()
        codes, largest[start // BLOCK : (start + step) // BLOCK] = _codes(piece)
        packed[start // 2 : (start + step) // 2] = codes[::2] << 4 | codes[1::2]
    offset = largest.mean()
    return Nf4(packed, *dynamic.encode(largest - offset, on_grid=True), offset)


def decode(code: Nf4, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the weights that the bytes stand for: products in float32, then rounded to `dtype`."""
    count = shape[0] * shape[1]
    scales = scales_of(code)
    found = torch.empty(count + count % 2, dtype=dtype, device=code.packed.device)
    pairs, step = _pairs(found.device), PIECES.get(found.device.type, PIECE)
    scratch = found if dtype == torch.float32 else found.new_empty(min(step, len(found)), dtype=torch.float32)
    for start in range(0, count, step):
        codes = code.packed[start // 2 : (start + step) // 2].int()
        weights = scratch[start : start + step] if scratch is found else scratch[: 2 * len(codes)]
        torch.index_select(pairs, 0, codes, out=weights.view(pairs.dtype))
        _scale(weights, scales[start // BLOCK : (start + step) // BLOCK])
        if scratch is not found:
            found[start : start + step] = weights
    return found[:count].view(shape)


def _scale(weights: Tensor, scales: Tensor) -> None:
    """Multiply each block by its scale, in place; the last block may be short."""
    whole = weights.numel() // BLOCK
    if whole:
        weights[: whole * BLOCK].view(-1, BLOCK).mul_(scales[:whole, None])
    if weights.numel() > whole * BLOCK:
        weights[whole * BLOCK :].mul_(scales[-1])


def scales_of(code: Nf4) -> Tensor:
    """Return the scale of each block in float32."""
    if code.coarse is None or code.offset is None:
        return code.scales
    return dynamic.decode(code.scales, code.coarse, scale_levels(code)).add_(code.offset)


def scale_levels(code: Nf4) -> Tensor:
    """Return what the 256 codes of the scales stand for, before their scale and offset."""
    return dynamic.levels(device=code.scales.device) if code.levels is None else code.levels


def _codes(piece: Tensor) -> tuple[Tensor, Tensor]:
    """Return the code of each weight, of an even number, and the largest size in each block."""
    whole = piece.numel() // BLOCK * BLOCK
    blocks, rest = piece[:whole].view(-1, BLOCK), piece[whole:]
    largest = blocks.abs().amax(1)
    normal = (blocks * (1.0 / largest.clamp(min=1e-38))[:, None]).view(-1)
    if rest.numel():  # the last, shorter block: divided, where the others are multiplied, as bitsandbytes does
        last = rest.abs().max().clamp(min=1e-38)
        largest, normal = torch.cat([largest, last[None]]), torch.cat([normal, rest / last])
    normal = F.pad(normal.clamp_(-1, 1), (0, normal.numel() % 2))
    codes = torch.zeros(normal.numel(), dtype=torch.uint8, device=piece.device)
    for threshold in _thresholds():  # ten times as fast as a search in them
        codes += (normal > threshold).view(torch.uint8)
    return codes, largest


@lru_cache(maxsize=1)
def _thresholds() -> list[float]:
    table = torch.tensor(LEVELS)
    return ((table[:-1] + table[1:]) / 2).tolist()


@dynamic.kept
def _pairs(device: torch.device) -> Tensor:
    """Return the two levels that each byte stands for, one behind the other in a number of 64 bits."""
    table, byte = torch.tensor(LEVELS), torch.arange(256)
    pairs = torch.stack([table[byte >> 4], table[byte & 15]], dim=1)
    # Taken as one number of 64 bits, a pair is looked up five times as fast as a row of two.
    return pairs.view(torch.complex64 if device.type == "mps" else torch.float64).view(-1).to(device)
