"""Attention on a processor: softmax for one block of queries at a time, its weights made again on the way back.

A block of scores stays in the cache of the processor, keys after it are never looked at, and nothing of time x time is
kept between the two passes. PyTorch's fused kernel does the same, but its backward pass takes twice as long.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK = 128  # queries; measured at 512 and 1024 tokens on a Zen 5 core: 64 is a tenth slower, 256 the same
ENTRIES = 1 << 20  # scores at a time, over rows and heads


def blocked_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Return softmax attention; without a mask it is causal.

    `mask` is added to the scores, (batch or 1, 1, time, span), and must forbid what comes later, like causality does:
    the queries are the last of the keys.
    """
    return _Blocked.apply(queries, keys, values, mask)  # type: ignore[return-value]


class _Block(NamedTuple):
    """Some rows of the batch, some queries of theirs, and the keys from the first up to the last that they may see."""

    rows: slice
    queries: slice
    keys: slice
    first: bool  # of its rows


def _blocks(queries: Tensor, keys: Tensor) -> Iterator[_Block]:
    batch, heads, time, _ = queries.shape
    span = keys.shape[2]
    at_once = max(1, ENTRIES // max(1, heads * min(BLOCK, time) * span))
    for row in range(0, batch, at_once):
        for start in range(0, time, BLOCK):
            stop = min(start + BLOCK, time)
            yield _Block(slice(row, row + at_once), slice(start, stop), slice(0, span - time + stop), start == 0)


class _Blocked(torch.autograd.Function):
    """Attention that keeps its inputs alone; query heads of one group are folded into the time axis."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, time, head_dim = queries.shape
        mixed = values.new_empty(batch, time, heads, head_dim).transpose(1, 2)  # as the output projection reads it
        causal = None if mask is not None else _causal(queries)
        for block in _blocks(queries, keys):
            weights = _weights(_scaled(queries, keys, block), keys, mask, causal, block)
            part = weights @ values[block.rows, :, block.keys]
            mixed[block.rows, :, block.queries] = part.view_as(mixed[block.rows, :, block.queries])
        ctx.save_for_backward(queries, keys, values, mask)
        return mixed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        queries, keys, values, mask = ctx.saved_tensors
        scale = queries.shape[-1] ** -0.5
        of_queries, of_keys, of_values = (_like(each) for each in (queries, keys, values))
        wide = torch.promote_types(values.dtype, torch.float32)
        causal = None if mask is not None else _causal(queries)
        key_sums = value_sums = gradient.new_empty(0)
        for block in _blocks(queries, keys):
            rows, span = block.rows, block.keys
            if block.first:
                key_sums, value_sums = (torch.zeros(keys[rows].shape, dtype=wide, device=keys.device) for _ in range(2))
            scaled = _scaled(queries, keys, block)
            weights = _weights(scaled, keys, mask, causal, block)
            arrived = _folded(gradient, keys, block)
            value_sums[:, :, span] += weights.transpose(-1, -2) @ arrived
            slopes = arrived @ values[rows, :, span].transpose(-1, -2)
            slopes = torch.ops.aten._softmax_backward_data(slopes, weights, -1, weights.dtype)  # d loss / d scores
            part = (slopes @ keys[rows, :, span]).mul_(scale)
            of_queries[rows, :, block.queries] = part.view_as(of_queries[rows, :, block.queries])
            key_sums[:, :, span] += slopes.transpose(-1, -2) @ scaled
            if block.queries.stop == queries.shape[2]:
                of_keys[rows], of_values[rows] = key_sums, value_sums
        return of_queries, of_keys, of_values, None


def _causal(queries: Tensor) -> Tensor:
    """Return what forbids a block's queries the keys after them: (block, block)."""
    size = min(BLOCK, queries.shape[2])
    return torch.full((size, size), float("-inf"), dtype=queries.dtype, device=queries.device).triu_(1)


def _folded(heads: Tensor, keys: Tensor, block: _Block) -> Tensor:
    """Return a block's part of a tensor by query head: (rows, kv_heads, group x block, head_dim)."""
    part = heads[block.rows, :, block.queries]
    group = heads.shape[1] // keys.shape[1]
    return part if group == 1 else part.reshape(part.shape[0], keys.shape[1], -1, part.shape[-1])


def _scaled(queries: Tensor, keys: Tensor, block: _Block) -> Tensor:
    return _folded(queries, keys, block) * queries.shape[-1] ** -0.5


def _weights(scaled: Tensor, keys: Tensor, mask: Tensor | None, causal: Tensor | None, block: _Block) -> Tensor:
    """Return a block's attention weights, (rows, kv_heads, group x block, keys); softmax sums in float32 or wider."""
    scores = scaled @ keys[block.rows, :, block.keys].transpose(-1, -2)
    size = block.queries.stop - block.queries.start
    grouped = scores.view(*scores.shape[:2], -1, size, scores.shape[-1])
    if causal is not None:
        grouped[..., -size:] += causal[:size, :size]
    elif mask is not None:
        rows = block.rows if len(mask) > 1 else slice(None)
        grouped += mask[rows, :, None, block.queries, block.keys]
    return torch.softmax(scores, dim=-1)


def _like(heads: Tensor) -> Tensor:
    """Make room for a gradient by head, laid out in memory as the projections that take it read it."""
    batch, count, time, head_dim = heads.shape
    return heads.new_empty(batch, time, count, head_dim).transpose(1, 2)
