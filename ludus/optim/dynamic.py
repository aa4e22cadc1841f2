"""Numbers in eight bits: 256 levels that lie close at zero and far at one, scaled block by block.

The levels are those of dynamic quantisation (arXiv 2110.02861 section 1.3): decades from 1e-6 to 1, with twice as many
levels in each as in the one below. Moments of the optimizer and the scales of NF4 weights are kept in them. Levels and
rounding are bitsandbytes' to the byte; how levels are chosen for weights is not here.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 256
DECADES = 7
GRID = 65535  # values are first rounded to this many steps between -1 and 1, then to the nearest level of that step
CHUNK = 1 << 22  # values encoded at a time, which bounds what is needed beside the result


@lru_cache(maxsize=16)
def levels(signed: bool = True, device: torch.device | str = "cpu") -> Tensor:
    """Return the 256 levels, ascending, in float32; the signed ones are symmetric but for 1, which has no opposite."""
    found = [torch.tensor([0.0, 1.0])]
    for decade in range(DECADES):
        edges = torch.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1)
        middles = 10 ** (decade + 1 - DECADES) * ((edges[:-1] + edges[1:]) / 2.0)
        found += [middles, -middles] if signed else [middles]
    return torch.cat(found).sort().values.to(device)


def encode(values: Tensor, *, signed: bool = True) -> tuple[Tensor, Tensor]:
    """Return one byte for each value, in its shape, and the largest size in each block of 256 (float32).

    A block of zeros gets scale 0. NaN and infinite values have no code; do not pass them.
    """
    flat = values.reshape(-1)
    count = flat.numel()
    codes = torch.empty(count, dtype=torch.uint8, device=flat.device)
    scales = torch.empty(-(-count // BLOCK), dtype=torch.float32, device=flat.device)
    for start in range(0, count, CHUNK):
        piece = flat[start : start + CHUNK].float()
        blocks = F.pad(piece, (0, -piece.numel() % BLOCK)).view(-1, BLOCK)
        largest = blocks.abs().amax(1)
        scales[start // BLOCK : start // BLOCK + len(largest)] = largest
        normal = torch.where(largest > 0, 1 / largest, 0)[:, None] * blocks
        steps = (((normal + 1) * 0.5) * GRID + 0.5).to(torch.int32)
        found = _nearest(signed, flat.device)[steps.clamp_(0, GRID)]
        codes[start : start + CHUNK] = torch.where(largest[:, None] > 0, found, 0).view(-1)[: piece.numel()]
    return codes.view(values.shape), scales


def decode(codes: Tensor, scales: Tensor, table: Tensor) -> Tensor:
    """Return level times scale in float32, in the shape of `codes`; `table` holds the 256 levels."""
    found = table.index_select(0, codes.reshape(-1).int())  # five times as fast as table[codes]
    whole = found.numel() // BLOCK * BLOCK
    if whole:
        found[:whole].view(-1, BLOCK).mul_(scales[: whole // BLOCK, None])
    if whole < found.numel():
        found[whole:].mul_(scales[-1])
    return found.view(codes.shape)


@lru_cache(maxsize=16)
def _nearest(signed: bool, device: torch.device) -> Tensor:
    """Return the code of the level nearest to each step of the grid."""
    table = levels(signed)
    grid = torch.arange(GRID + 1) / GRID * 2 - 1
    return torch.bucketize(grid, (table[:-1] + table[1:]) / 2).to(device=device, dtype=torch.uint8)
