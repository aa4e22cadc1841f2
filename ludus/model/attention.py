"""Attention: who may look at whom, rotary positions, and two backends that must agree.

A mask is one boolean tensor, True where a query may see a key. Documents packed in one row, padding and the KV cache
are all masks; no backend knows about them.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def document_mask(documents: Int[Tensor, "batch time"], *, shared: bool = False) -> Bool[Tensor, "batch 1 time time"]:
    """Let each token see itself and the earlier tokens of its own document, and of document 0 where it is `shared`."""
    time = documents.shape[1]
    causal = torch.ones(time, time, dtype=torch.bool, device=documents.device).tril()
    visible = documents[:, :, None] == documents[:, None, :]  # (batch, time, time)
    if shared:
        visible = visible | (documents == 0)[:, None, :]
    return (visible & causal)[:, None]


def document_positions(documents: Int[Tensor, "batch time"], *, shared: bool = False) -> Int[Tensor, "batch time"]:
    """Count positions from 0 within each run of equal document numbers; after document 0, where it is `shared`."""
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    within = index - torch.where(starts, index, 0).cummax(dim=1).values
    if not shared:
        return within
    prefix = (documents == 0).sum(dim=1, keepdim=True)
    return torch.where(documents == 0, within, within + prefix)


def rotary_angles(
    positions: Int[Tensor, "batch time"], head_dim: int, theta: float
) -> Float[Tensor, "batch 1 time half"]:
    """Return position x frequency for each pair of channels (RoPE, arXiv 2104.09864 eq. 15)."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    return (positions[..., None].float() * frequencies)[:, None]


def rotate(
    heads: Float[Tensor, "batch heads time head_dim"],
    cos: Float[Tensor, "#batch 1 time half"],
    sin: Float[Tensor, "#batch 1 time half"],
) -> Float[Tensor, "batch heads time head_dim"]:
    """Turn channel i with channel i + half by the angles: the half-split layout of Llama checkpoints."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def plain_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention written out; the fastest on a CPU at contexts of a few hundred tokens.

    Query heads of one group are folded into the time axis, so that keys and values are never repeated.
    """
    batch, heads, time, head_dim = queries.shape
    kv_heads, span = keys.shape[1], keys.shape[2]
    group = heads // kv_heads
    folded = queries.reshape(batch, kv_heads, group * time, head_dim)
    scores = (folded * head_dim**-0.5) @ keys.transpose(-1, -2)  # (batch, kv_heads, group x time, span)
    scores = scores.view(batch, kv_heads, group, time, span)
    if mask is None:
        mask = torch.ones(time, span, dtype=torch.bool, device=queries.device).tril(span - time)[None, None]
    scores = scores.masked_fill(~mask[:, :, None], float("-inf"))
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(values.dtype)
    mixed = weights.view(batch, kv_heads, group * time, span) @ values
    return mixed.view(batch, heads, time, head_dim)


def fused_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """PyTorch's scaled_dot_product_attention; the one to use on a GPU and at long contexts."""
    causal = mask is None and queries.shape[2] > 1
    grouped = queries.shape[1] != keys.shape[1]
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


BACKENDS = {"plain": plain_attention, "fused": fused_attention}
