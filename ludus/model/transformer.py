"""The one transformer: token ids in, hidden states or logits out.

Parameter names are those of Hugging Face's Llama, so that weights travel without a dictionary. The model knows nothing
of adapters, sharding or recomputation: those are surgery from outside.
"""

import contextlib
import math
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ludus.model.attention import BACKENDS, document_mask, document_positions, rotary_angles, rotate
from ludus.model.settings import Architecture


@runtime_checkable
class Cache(Protocol):
    """What attention asks of a KV cache; `ludus.generation.cache` has the one we use."""

    def positions(self, time: int) -> Int[Tensor, "batch time"]:
        """Positions of the next `time` tokens, counted from each row's first real token."""
        ...

    def mask(self, time: int) -> Tensor:
        """Who the next `time` tokens may see, over everything kept and themselves: (batch, 1, time, span)."""
        ...

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the new keys and values of a layer and return all of that layer's: (batch, kv_heads, span, head_dim)."""
        ...

    def advance(self, time: int) -> None:
        """Count `time` tokens as kept, once every layer has extended."""
        ...


class RMSNorm(nn.Module):
    """Divide by the root mean square, then scale each channel (arXiv 1910.07467 eq. 4)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions (arXiv 2305.13245)."""

    def __init__(self, shape: Architecture, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim, self.backend = layer, shape.head_dim, "plain"
        self.q_proj = nn.Linear(shape.width, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """Mix each position with those its mask lets it see."""
        split = (*x.shape[:2], -1, self.head_dim)
        queries, keys, values = (
            projection(x).view(split).transpose(1, 2)  # (batch, heads, time, head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        queries, keys = rotate(queries, cos, sin).to(values.dtype), rotate(keys, cos, sin).to(values.dtype)
        if cache is not None:
            keys, values = cache.extend(self.layer, keys, values)
        mixed = BACKENDS[self.backend](queries, keys, values, mask)
        return self.o_proj(mixed.transpose(1, 2).reshape(*x.shape[:2], -1))


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202 eq. 6)."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down_proj = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map each position on its own."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: attention, then feed-forward, each added to what came in."""

    def __init__(self, shape: Architecture, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.width, shape.norm_epsilon)
        self.self_attn = Attention(shape, layer)
        self.post_attention_layernorm = RMSNorm(shape.width, shape.norm_epsilon)
        self.mlp = FeedForward(shape)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """Add what attention, then what the feed-forward finds."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin, mask, cache))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Transformer(nn.Module):
    """A decoder-only language model.

    `precision` is the dtype of its matrix products; weights and the residual stream stay as they are.
    """

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        self.shape = shape
        self.precision = torch.float32
        # Not drawn: on the meta device drawing makes torch import its compiler, which takes longer than loading does.
        undrawn = torch.empty(shape.vocabulary, shape.width)
        self.embed_tokens = nn.Embedding.from_pretrained(undrawn, freeze=False)
        self.layers = nn.ModuleList(Block(shape, layer) for layer in range(shape.layers))
        self.norm = RMSNorm(shape.width, shape.norm_epsilon)
        self.lm_head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        if shape.tied:
            self.lm_head.weight = self.embed_tokens.weight

    def autocast(self) -> contextlib.AbstractContextManager:
        """Run matrix products in `self.precision`."""
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.embed_tokens.weight.device.type, dtype=self.precision)

    def hidden(
        self,
        tokens: Int[Tensor, "batch time"],
        *,
        positions: Int[Tensor, "batch time"] | None = None,
        documents: Int[Tensor, "batch time"] | None = None,
        shared: bool = False,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch time channels"]:
        """Return the final hidden states, before the head.

        `documents` numbers the document of each token in a packed row: tokens never see another document, and positions
        restart; where document 0 is `shared`, the others see it and count on from it. With a `cache`, `tokens` continue
        what the cache holds and `documents` must be None.
        """
        mask = None
        if cache is not None:
            positions, mask = cache.positions(tokens.shape[1]), cache.mask(tokens.shape[1])
        elif documents is not None:
            mask = document_mask(documents, shared=shared)
            positions = document_positions(documents, shared=shared) if positions is None else positions
        elif positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        angles = rotary_angles(positions, self.shape.head_dim, self.shape.rope_theta)
        cos, sin = angles.cos(), angles.sin()
        with self.autocast():
            x = self.embed_tokens(tokens)
            for block in self.layers:
                x = block(x, cos, sin, mask, cache)
            if cache is not None:
                cache.advance(tokens.shape[1])
            return self.norm(x)

    def logits(self, hidden: Float[Tensor, "*rows channels"]) -> Float[Tensor, "*rows vocab"]:
        """Return float32 scores over the vocabulary."""
        with self.autocast():
            return self.lm_head(hidden).float()

    def forward(self, tokens: Tensor, **where: Tensor | Cache | bool | None) -> Float[Tensor, "batch time vocab"]:
        """Return logits for every position; see `hidden` for the keywords."""
        return self.logits(self.hidden(tokens, **where))  # type: ignore[arg-type]


def initialise(model: Transformer, generator: torch.Generator) -> Transformer:
    """Draw fresh weights: normal embeddings and matrices, zeros where a block writes to the residual stream.

    A zero head makes the first loss exactly ln V; zero output projections make each block start as the identity.
    A tied head cannot be zero, so it is drawn small.
    """
    width = model.shape.width
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
            nn.init.zeros_(parameter)
        elif name == "embed_tokens.weight":
            nn.init.normal_(parameter, std=0.02 if model.shape.tied else 0.5, generator=generator)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=1 / math.sqrt(width), generator=generator)
        else:
            nn.init.ones_(parameter)
    return model


def build(shape: Architecture, *, seed: int) -> Transformer:
    """Return a model with fresh weights drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator as they are made
        model = Transformer(shape)
    return initialise(model, torch.Generator().manual_seed(seed))
