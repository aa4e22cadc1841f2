"""The one transformer: token ids in, hidden states or logits out.

Every family is this class with other switches. Parameter names are those of Hugging Face's Llama, so that weights
travel without a dictionary. The model knows nothing of adapters, sharding or recomputation: those are surgery from
outside.
"""

import contextlib
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ludus.base.errors import ConfigError, nearest
from ludus.model.architecture import Architecture
from ludus.model.attention import BACKENDS, Attention
from ludus.model.convolution import Convolution
from ludus.model.experts import Mixture
from ludus.model.feedforward import FeedForward
from ludus.model.initialise import initialise as initialise
from ludus.model.ngrams import Ngrams
from ludus.model.norms import stream_norm
from ludus.model.sight import Cache, Sight


class Block(nn.Module):
    """One layer: attention, then feed-forward, each added to what came in; side by side where they are parallel."""

    def __init__(self, shape: Architecture, layer: int) -> None:
        super().__init__()
        self.skip = nn.Parameter(torch.tensor([1.0, 0.0])) if shape.embedding_skip else None
        self.input_layernorm = stream_norm(shape)
        self.attention_convolution = _convolution(shape, shape.attention_convolution, f"{layer}.attention")
        self.self_attn = Attention(shape, layer)
        self.post_attention_layernorm = None if shape.parallel else stream_norm(shape)
        self.mlp_convolution = _convolution(shape, shape.mlp_convolution, f"{layer}.mlp")
        self.mlp = Mixture(shape, shape.experts) if shape.experts else FeedForward(shape)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor, embedded: Tensor, sight: Sight) -> Tensor:
        """Add what attention, then what the feed-forward finds."""
        if self.skip is not None:
            x = self.skip[0] * x + self.skip[1] * embedded
        normed = self.input_layernorm(x)
        seeing = normed if self.attention_convolution is None else self.attention_convolution(normed, sight)
        mixed = self.dropout(self.self_attn(seeing, sight))
        if self.post_attention_layernorm is None:
            return x + mixed + self.dropout(self._mapped(normed, sight))
        x = x + mixed
        return x + self.dropout(self._mapped(self.post_attention_layernorm(x), sight))

    def _mapped(self, normed: Tensor, sight: Sight) -> Tensor:
        if self.mlp_convolution is not None:
            normed = self.mlp_convolution(normed, sight)
        return self.mlp(normed, sight.real) if isinstance(self.mlp, Mixture) else self.mlp(normed)


def _convolution(shape: Architecture, taps: int, site: str) -> Convolution | None:
    return Convolution(shape.width, taps, site) if taps else None


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
        self.embed_positions = None
        if shape.position == "learned":
            self.embed_positions = nn.Embedding.from_pretrained(torch.empty(shape.context, shape.width), freeze=False)
        self.ngrams = Ngrams(shape) if shape.ngrams else None
        self.embedding_convolution = _convolution(shape, shape.embedding_convolution, "embedding")
        self.embedding_norm = stream_norm(shape) if shape.embedding_norm else None
        self.dropout = nn.Dropout(shape.dropout)
        self.layers = nn.ModuleList(Block(shape, layer) for layer in range(shape.layers))
        self.norm = stream_norm(shape)
        self.lm_head = nn.Linear(shape.width, shape.vocabulary, bias=shape.head_bias)
        if shape.tied:
            self.lm_head.weight = self.embed_tokens.weight

    @property
    def attention_backend(self) -> str:
        """How the layers attend: plain, fused, flex, or auto, which chooses by device, length and documents."""
        return self.layers[0].self_attn.backend  # type: ignore[union-attr,return-value]

    @attention_backend.setter
    def attention_backend(self, backend: str) -> None:
        if backend not in (known := [*BACKENDS, "auto"]):
            near = nearest(backend, known)
            hint = f"; did you mean {near}?" if near else ""
            raise ConfigError(f"attention backend {backend} is none of {', '.join(known)}{hint}")
        for block in self.layers:
            block.self_attn.backend = backend  # type: ignore[union-attr]

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
        sight = Sight(self.shape, tokens, positions=positions, documents=documents, shared=shared, cache=cache)
        with self.autocast():
            embedded = x = self._embedded(tokens, sight)
            for block in self.layers:
                x = block(x, embedded, sight)
            if cache is not None:
                cache.advance(tokens.shape[1])
            return self.norm(x)

    def _embedded(self, tokens: Tensor, sight: Sight) -> Tensor:
        x = self.embed_tokens(tokens)
        if self.embed_positions is not None:
            if sight.cache is None and tokens.shape[1] > self.shape.context:
                raise ConfigError(
                    f"{tokens.shape[1]} tokens in a row, and the model has learned {self.shape.context} positions; "
                    "give it shorter rows"
                )
            x = x + self.embed_positions(sight.positions)
        if self.ngrams is not None:
            x = x + self.ngrams(tokens, sight)
        if self.embedding_convolution is not None:
            x = self.embedding_convolution(x, sight)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        return self.dropout(x)

    def logits(self, hidden: Float[Tensor, "*rows channels"]) -> Float[Tensor, "*rows vocab"]:
        """Return float32 scores over the vocabulary, within the soft cap where there is one."""
        with self.autocast():
            scores = self.lm_head(hidden).float()
        cap = self.shape.logit_softcap
        return scores if cap is None else cap * torch.tanh(scores / cap)

    def forward(self, tokens: Tensor, **where: Tensor | Cache | bool | None) -> Float[Tensor, "batch time vocab"]:
        """Return logits for every position; see `hidden` for the keywords."""
        return self.logits(self.hidden(tokens, **where))  # type: ignore[arg-type]


def build(shape: Architecture, *, seed: int, initial: Literal["zero", "gpt2"] = "zero") -> Transformer:
    """Return a model with fresh weights drawn from `seed`; see `initialise` for the two ways."""
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator as they are made
        model = Transformer(shape)
    initialise(model, torch.Generator().manual_seed(seed), initial)
    return model
