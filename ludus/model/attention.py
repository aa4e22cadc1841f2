"""Attention: three backends that must agree, the choice among them, and the layer that uses one.

A backend gets queries, keys and values by head, the mask in the form it asks for (`ludus.model.sight`), and the share
of weights to drop. No backend knows of documents, padding, windows or caches: those are masks.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ludus.base.errors import ConfigError
from ludus.model.architecture import Architecture
from ludus.model.blocked import blocked_attention
from ludus.model.norms import head_norm, narrowed
from ludus.model.positions import rotate as rotate
from ludus.model.sight import Sight

PLAIN_SPAN = 128  # keys; up to so many the backend written out is the fastest on a CPU


def plain_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Softmax attention written out; the fastest on a CPU at contexts of a few hundred tokens.

    Query heads of one group are folded into the time axis, so that keys and values are never repeated.
    """
    batch, heads, time, head_dim = queries.shape
    kv_heads, span = keys.shape[1], keys.shape[2]
    group = heads // kv_heads
    folded = queries.reshape(batch, kv_heads, group * time, head_dim)
    scores = (folded * head_dim**-0.5) @ keys.transpose(-1, -2)  # (batch, kv_heads, group x time, span)
    scores = scores.view(batch, kv_heads, group, time, span)
    if mask is None and time > 1:
        mask = torch.full((time, span), float("-inf"), device=queries.device).triu(span - time + 1)[None, None]
    if mask is not None:
        scores = scores + mask[:, :, None]  # cheaper than filling: nothing is to be done on the way back
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(values.dtype)
    weights = F.dropout(weights, dropout) if dropout else weights
    mixed = weights.view(batch, kv_heads, group * time, span) @ values
    return mixed.view(batch, heads, time, head_dim)


def fused_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """PyTorch's scaled_dot_product_attention; the one to use on a GPU and at long contexts."""
    return F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None and queries.shape[2] > 1,
        enable_gqa=queries.shape[1] != keys.shape[1],
    )


def block_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Softmax attention a block of queries at a time; the fastest on a CPU beyond a short context, and the leanest."""
    if dropout:  # what was dropped would have to be kept
        return plain_attention(queries, keys, values, mask, dropout)
    return blocked_attention(queries, keys, values, mask)


def flex_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Any, dropout: float = 0.0) -> Tensor:
    """PyTorch's FlexAttention, which skips the blocks that nobody sees (arXiv 2412.05496); compiled on a GPU.

    It has no backward pass on a CPU, where it is there to be compared with.
    """
    if dropout:
        raise ConfigError("the flex attention backend drops no weights; set model.dropout=0 or another backend")
    kernel = _compiled_flex() if queries.is_cuda else _flex()
    return kernel(queries, keys, values, block_mask=mask, enable_gqa=queries.shape[1] != keys.shape[1])


def _flex() -> Callable[..., Any]:
    from torch.nn.attention import flex_attention as flex  # imports the compiler, which takes seconds

    return flex.flex_attention


@lru_cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(_flex(), dynamic=False)


class Backend(NamedTuple):
    """How to attend, and the form of mask it asks `Sight` for."""

    attend: Callable[..., Tensor]
    form: str


BACKENDS = {
    "plain": Backend(plain_attention, "dense"),
    "fused": Backend(fused_attention, "causal"),
    "blocked": Backend(block_attention, "causal"),
    "flex": Backend(flex_attention, "blocks"),
}


def chosen(backend: str, queries: Tensor, keys: Tensor, sight: Sight, dropout: float = 0.0) -> Backend:
    """Return the backend of a name, where `auto` goes by device, length and documents.

    Where a backend cannot run (FlexAttention while decoding or in a backward pass on a CPU, blocks while decoding), its
    place is taken by a dense one.
    """
    on_gpu, cached = queries.is_cuda, sight.cache is not None
    dense = "fused" if on_gpu or cached else "blocked"
    if not on_gpu and keys.shape[2] <= PLAIN_SPAN:
        dense = "plain"
    if backend == "auto":
        packed = on_gpu and sight.documents is not None and not cached
        backend = "flex" if packed and not dropout else dense  # FlexAttention has no dropout
    if backend == "blocked" and cached:
        backend = dense
    if backend == "flex" and (cached or (not on_gpu and queries.requires_grad)):
        backend = dense
    return BACKENDS[backend]


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245): each key and value head serves a group of query heads."""

    def __init__(self, shape: Architecture, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim, self.backend = layer, shape.head_dim, "auto"
        self.window = shape.window(layer)
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.width, queries, bias=shape.attention_bias)
        self.k_proj = nn.Linear(shape.width, keys, bias=shape.attention_bias)
        self.v_proj = nn.Linear(shape.width, keys, bias=shape.attention_bias)
        self.o_proj = nn.Linear(queries, shape.width, bias=shape.output_bias)
        self.q_norm, self.k_norm = head_norm(shape), head_norm(shape)
        self.dropout = nn.Dropout(shape.dropout)  # of weights; the backends read its share

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        """Mix each position with those it may see."""
        split, x = (*x.shape[:2], -1, self.head_dim), narrowed(x)
        queries, keys, values = (
            projection(x).view(split).transpose(1, 2)  # (batch, heads, time, head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        if sight.rotation is not None:
            queries, keys = sight.rotation(queries), sight.rotation(keys)
        queries, keys = queries.to(values.dtype), keys.to(values.dtype)
        if sight.cache is not None:
            keys, values = sight.cache.extend(self.layer, keys, values)
        dropout = self.dropout.p if self.training else 0.0
        attend, form = chosen(self.backend, queries, keys, sight, dropout)
        mask = sight.mask(form, self.window, queries.dtype if form == "causal" else torch.float32)
        mixed = attend(queries, keys, values, mask, dropout)
        return self.o_proj(mixed.transpose(1, 2).reshape(*x.shape[:2], -1))
