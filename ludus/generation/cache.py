"""The KV cache: keys and values of every layer for rows that are padded on the left and grow to the right."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ludus.model.settings import Architecture


class KVCache:
    """Room for `capacity` tokens a row, allocated once."""

    def __init__(self, shape: Architecture, starts: Int[Tensor, " batch"], capacity: int, dtype: torch.dtype) -> None:
        size = (shape.layers, len(starts), shape.kv_heads, capacity, shape.head_dim)
        self.keys = torch.empty(size, dtype=dtype, device=starts.device)
        self.values = torch.empty(size, dtype=dtype, device=starts.device)
        self.starts = starts  # index of each row's first real token; what lies before is padding
        self.context = shape.context
        self.length = 0

    def positions(self, time: int) -> Int[Tensor, "batch time"]:
        """Count positions from each row's first real token; padding gets 0."""
        index = torch.arange(self.length, self.length + time, device=self.starts.device)
        return (index[None] - self.starts[:, None]).clamp(min=0)

    def mask(self, time: int) -> Bool[Tensor, "batch 1 time span"]:
        """Let each new token see itself and the real tokens before it, as far back as the model's context.

        Rotary attention depends on distances only, so a text longer than the context is continued through a sliding
        window: no distance occurs that training has not seen.
        """
        span = torch.arange(self.length + time, device=self.starts.device)
        queries = span[self.length :, None]
        causal = (span <= queries) & (span > queries - self.context)  # (time, span)
        real = span >= self.starts[:, None]  # (batch, span)
        itself = span == queries  # so that no padding row is empty, which would make NaN
        return ((causal & real[:, None]) | itself)[:, None]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep new keys and values, (batch, kv_heads, time, head_dim), and return all of the layer's."""
        stop = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : stop] = keys
        self.values[layer, :, :, self.length : stop] = values
        return self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]

    def advance(self, time: int) -> None:
        """Count `time` tokens as kept."""
        self.length += time

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Keep the given rows only, in that order; a row may be named several times, to share its prefix."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.starts = self.starts[rows]
