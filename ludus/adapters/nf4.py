"""Weights in four bits: NormalFloat with double quantisation (QLoRA, arXiv 2305.14314), to and from bytes.

Blocks of 64 weights share a scale, their largest size; 256 scales, less the mean of all, are kept in eight bits and
share one float. Two weights lie in a byte, the first in its upper half. Bytes and values are bitsandbytes' own. It is
pure PyTorch and runs on any device; layers that keep their weights so are in `ludus.adapters.quantised`.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ludus.optim import dynamic

BLOCK = 64
SCALES = dynamic.BLOCK  # scales that share a float
PIECE = 1 << 22  # weights at a time, which bounds what is needed beside the result
PIECES = {"cpu": 1 << 18}  # where they should stay in the cache meanwhile
MANY_THREADS = 6  # looking up rows of two shares its work out among threads, but takes five times the work
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
    count, scales, device = shape[0] * shape[1], scales_of(code), code.packed.device
    found = torch.empty(count + count % 2, dtype=dtype, device=device)
    step = PIECES.get(device.type, PIECE)
    if count <= step:
        _decode_into(found, code.packed, scales)
        return found[:count].view(shape)
    for start in range(0, count, step):
        stop = start + step
        codes = code.packed[start // 2 : stop // 2]
        _decode_into(found[start:stop], codes, scales[start // BLOCK : stop // BLOCK])
    return found[:count].view(shape)


def _decode_into(found: Tensor, packed: Tensor, scales: Tensor) -> None:
    weights = found if found.dtype == torch.float32 else torch.empty_like(found, dtype=torch.float32)
    pairs = _pairs(found.device)
    if found.device.type == "cpu" and torch.get_num_threads() >= MANY_THREADS:
        rows = pairs.view(torch.float32).view(-1, 2)
        torch.index_select(rows, 0, packed.int(), out=weights.view(-1, 2))
    else:
        torch.index_select(pairs, 0, packed.int(), out=weights.view(pairs.dtype))
    dynamic.scale_(weights, scales, BLOCK)
    if weights is not found:
        found.copy_(weights)


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
    table = np.array(LEVELS, dtype=np.float32)
    return ((table[:-1] + table[1:]) / 2).tolist()


@dynamic.kept
def _pairs(device: torch.device) -> Tensor:
    """Return the two levels that each byte stands for, one behind the other in a number of 64 bits."""
    table, byte = torch.tensor(LEVELS), torch.arange(256)
    pairs = torch.stack([table[byte >> 4], table[byte & 15]], dim=1)
    # Taken as one number of 64 bits, a pair is looked up five times as fast as a row of two.
    return pairs.view(torch.complex64 if device.type == "mps" else torch.float64).view(-1).to(device)
