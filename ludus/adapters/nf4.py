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
CHUNK = 1 << 20  # weights at a time, which bounds what is needed beside the result
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
    """A matrix in four bits: packed codes, and its scales in eight."""

    packed: Tensor  # uint8, half as many as weights, rounded up
    scales: Tensor  # uint8, one for 64 weights
    coarse: Tensor  # float32, one for 256 scales
    offset: Tensor  # float32, 0-dim: the mean of the scales


def encode(weight: Tensor) -> Nf4:
    """Quantise the weights, in the order they lie in."""
    flat = weight.detach().reshape(-1)
    count = flat.numel()
    packed = torch.empty((count + 1) // 2, dtype=torch.uint8, device=flat.device)
    largest = torch.empty(-(-count // BLOCK), dtype=torch.float32, device=flat.device)
    for start in range(0, count, CHUNK):
        piece = flat[start : start + CHUNK].float()
        codes, largest[start // BLOCK : (start + CHUNK) // BLOCK] = _codes(piece)
        packed[start // 2 : (start + CHUNK) // 2] = codes[::2] << 4 | codes[1::2]
    offset = largest.mean()
    return Nf4(packed, *dynamic.encode(largest - offset), offset)


def decode(code: Nf4, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the weights that the bytes stand for: products in float32, then rounded to `dtype`."""
    count = shape[0] * shape[1]
    scales = dynamic.decode(code.scales, code.coarse, scale_levels(code)) + code.offset
    found = F.embedding(code.packed.int(), _pairs(code.packed.device)).view(-1)[:count]
    whole = count // BLOCK
    found[: whole * BLOCK].view(-1, BLOCK).mul_(scales[:whole, None])
    found[whole * BLOCK :].mul_(scales[-1:])
    return found.view(shape).to(dtype)


def scale_levels(code: Nf4) -> Tensor:
    """Return what the 256 codes of the scales stand for, before their scale and offset."""
    return dynamic.levels(device=code.scales.device)


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
    return torch.bucketize(normal, _thresholds(piece.device), out_int32=True).to(torch.uint8), largest


@lru_cache(maxsize=16)
def _thresholds(device: torch.device) -> Tensor:
    table = torch.tensor(LEVELS)
    return ((table[:-1] + table[1:]) / 2).to(device)


@lru_cache(maxsize=16)
def _pairs(device: torch.device) -> Tensor:
    """Return the two levels that each byte stands for."""
    table = torch.tensor(LEVELS, device=device)
    byte = torch.arange(256, device=device)
    return torch.stack([table[byte >> 4], table[byte & 15]], dim=1)
