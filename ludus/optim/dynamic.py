"""Numbers in eight bits: 256 levels that lie close at zero and far at one, scaled block by block.

The levels are those of dynamic quantisation (arXiv 2110.02861): decades from 1e-6 to 1, with twice as many
levels in each as in the one below. Moments of the optimizer and the scales of NF4 weights are kept in them. Levels are
bitsandbytes' to the bit; how levels are chosen for weights is not here.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 256
DECADES = 7
STEPS = 65535
PIECE = 1 << 22  # values encoded at a time, which bounds what is needed beside the result
PIECES = {"cpu": 1 << 17}  # where they should stay in the cache meanwhile

Asked = ParamSpec("Asked")
Table = TypeVar("Table")


def kept(make: Callable[Asked, Table]) -> Callable[Asked, Table]:
    """Make each table once; where tensors are made without content, as in planning, anew each time."""
    once = lru_cache(maxsize=16)(make)

    @wraps(make)
    def found(*args: Asked.args, **kwargs: Asked.kwargs) -> Table:
        real = type(torch.empty(0)) is Tensor
        return once(*args, **kwargs) if real else make(*args, **kwargs)

    return found


@kept
def levels(signed: bool = True, device: torch.device | str = "cpu") -> Tensor:
    """Return the 256 levels, ascending, in float32; the signed ones are symmetric but for 1, which has no opposite."""
    found = [torch.tensor([0.0, 1.0])]
    for decade in range(DECADES):
        edges = torch.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1)
        middles = 10 ** (decade + 1 - DECADES) * ((edges[:-1] + edges[1:]) / 2.0)
        found += [middles, -middles] if signed else [middles]
    return torch.cat(found).sort().values.to(device)


def encode(values: Tensor, *, signed: bool = True, on_grid: bool = False) -> tuple[Tensor, Tensor]:
    """Return one byte for each value, in its shape, and the largest size in each block of 256 (float32).

    A value gets the level nearest to it; `on_grid`, after rounding to 65535 steps between -1 and 1 as bitsandbytes does
    on a processor, which is far off near zero. A block of zeros gets scale 0. Not for NaN.
    """
    flat = values.reshape(-1)
    count, step = flat.numel(), PIECES.get(flat.device.type, PIECE)
    codes = torch.empty(count, dtype=torch.uint8, device=flat.device)
    scales = torch.empty(-(-count // BLOCK), dtype=torch.float32, device=flat.device)
    for start in range(0, count, step):
        piece = flat[start : start + step].float()
        blocks = F.pad(piece, (0, -piece.numel() % BLOCK)).view(-1, BLOCK)
        largest = blocks.abs().amax(1)
        scales[start // BLOCK : start // BLOCK + len(largest)] = largest
        normal = (blocks * torch.where(largest > 0, 1 / largest, 0)[:, None]).view(-1)
        found = _on_grid(normal, signed) if on_grid else nearest(normal, signed)
        found.view(-1, BLOCK).mul_((largest > 0)[:, None])
        codes[start : start + step] = found[: piece.numel()]
    return codes.view(values.shape), scales


def decode(codes: Tensor, scales: Tensor, table: Tensor) -> Tensor:
    """Return level times scale in float32, in the shape of `codes`; `table` holds the 256 levels."""
    found = table.index_select(0, codes.reshape(-1).int())  # five times as fast as table[codes]
    scale_(found, scales, BLOCK)
    return found.view(codes.shape)


def scale_(values: Tensor, scales: Tensor, block: int) -> None:
    """Multiply each block of values, of one dimension, by its scale, in place; the last block may be short."""
    whole = values.numel() // block
    if values.numel() == whole * block:
        values.view(-1, block).mul_(scales.unsqueeze(1))
        return
    if whole:
        values[: whole * block].view(-1, block).mul_(scales[:whole, None])
    values[whole * block :].mul_(scales[-1])


def nearest(normal: Tensor, signed: bool) -> Tensor:
    """Return the code of the level nearest to each value between -1 and 1, of one dimension.

    The upper half of a float's bits says between which levels it lies, but for one threshold: 25 times as fast as a
    search among the levels.
    """
    first, thresholds = _by_upper_half(signed, normal.device)
    upper = (normal.view(torch.int32) >> 16) & 0xFFFF
    return first.index_select(0, upper).add_((normal > thresholds.index_select(0, upper)).view(torch.uint8))


def _on_grid(normal: Tensor, signed: bool) -> Tensor:
    steps = (((normal + 1) * 0.5) * STEPS + 0.5).to(torch.int32)
    return _of_steps(signed, normal.device).index_select(0, steps.clamp_(0, STEPS))


def _middles(signed: bool) -> Tensor:
    table = levels(signed)
    return (table[:-1] + table[1:]) / 2


@kept
def _of_steps(signed: bool, device: torch.device) -> Tensor:
    """Return the code of the level nearest to each step of the grid."""
    grid = torch.arange(STEPS + 1) / STEPS * 2 - 1
    return torch.bucketize(grid, _middles(signed)).to(device=device, dtype=torch.uint8)


@kept
def _by_upper_half(signed: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return, for each upper half of a float, the least code of floats with it, and what those of the next exceed."""
    upper = torch.arange(1 << 16, dtype=torch.int32) << 16
    least = torch.minimum(upper.view(torch.float32), (upper | 0xFFFF).view(torch.float32))
    first = torch.bucketize(least, _middles(signed)).clamp_(max=255)
    thresholds = F.pad(_middles(signed), (0, 1), value=torch.inf)[first]
    return first.to(device=device, dtype=torch.uint8), thresholds.to(device)
