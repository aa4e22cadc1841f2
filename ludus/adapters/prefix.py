"""Prefix tuning: keys and values, learned in each layer, that stand before every text (arXiv 2101.00190).

The tokens of the prefix are never run: a wrapper around the cache, or around none, puts their keys and values before
those of the text. They are kept as PEFT keeps them, keys after their rotation, with the heads of keys where queries
share them. They start as the keys and values of tokens drawn at random, which is what the layers are used to seeing
(the paper's section 7.4), so that the model computes another thing from the first step on: the identity it cannot be.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ludus.adapters.settings import PrefixSettings
from ludus.adapters.virtual import (
    TextSight,
    Virtual,
    Where,
    check_room,
    limit_reach,
    placed,
    precede,
    preceding,
    reserve,
    sources,
    through,
)
from ludus.base.seeds import derive_seed
from ludus.model.architecture import Architecture
from ludus.model.sight import Cache, Sight, document_positions
from ludus.model.transformer import Transformer

SPREAD = 0.02  # of the fresh weights that a network's change comes out of: small beside what it is added to


class Prefix(Virtual):
    """Rows of (2 x layers x kv_heads x head_dim) numbers: each layer's key, then its value."""

    peft_type = "PREFIX_TUNING"

    @staticmethod
    def channels(shape: Architecture) -> int:
        """Return the size of a token's keys and values in all layers."""
        return 2 * shape.layers * shape.kv_heads * shape.head_dim

    def hidden(self, model: Transformer, tokens: Int[Tensor, "batch time"], where: Where) -> Tensor:
        """Run the text alone, with the prefix in sight."""
        positions, documents, shared, cache = (where[name] for name in ("positions", "documents", "shared", "cache"))
        if cache is None:
            wrapped: Cache = Before(self._by_layer(model.shape), documents, shared)
        else:
            wrapped = cache if cache.length else Filling(self._by_layer(model.shape), cache, tokens.shape[1])
        whole = Sight(model.shape, tokens, positions=positions, shared=documents is not None, cache=wrapped)
        limit_reach(whole, model.shape.context if cache is not None else None, self.count)
        sight = TextSight(whole, self.count, documents, shared, tokens.shape[1])
        with model.autocast():
            x = through(model, model._embedded(tokens, sight), sight)
            wrapped.advance(tokens.shape[1])
            return model.norm(x)

    def config(self, shape: Architecture) -> dict[str, Any]:
        """Return the sizes; a network is folded, so PEFT is told of none and can train on."""
        return {
            "token_dim": shape.kv_heads * shape.head_dim,
            "num_layers": shape.layers,
            "num_attention_heads": shape.kv_heads,
            "prefix_projection": False,
            "encoder_hidden_size": shape.kv_heads * shape.head_dim,
        }

    def _by_layer(self, shape: Architecture) -> Float[Tensor, "sides kv_heads virtual head_dim"]:
        """Return keys (even) and values (odd) of each layer."""
        return self.table().view(self.count, 2 * shape.layers, shape.kv_heads, shape.head_dim).permute(1, 2, 0, 3)


class Projected(Prefix):
    """A prefix made by a network with one inner layer of tanh while it is trained (section 4.3), folded when saved."""

    start: Tensor

    def __init__(self, start: Float[Tensor, "virtual channels"], width: int, inner: int, draw: torch.Generator) -> None:
        super().__init__(torch.randn(len(start), width, generator=draw))
        self.register_buffer("start", start.float())
        # No linear layers: what reads, packs or quantises those has no business here.
        self.inner = nn.Parameter(torch.randn(inner, width, generator=draw) * width**-0.5)
        self.inner_bias = nn.Parameter(torch.zeros(inner))
        self.outer = nn.Parameter(torch.randn(start.shape[1], inner, generator=draw) * SPREAD)
        self.outer_bias = nn.Parameter(torch.zeros(start.shape[1]))

    def table(self) -> Float[Tensor, "virtual channels"]:
        """Return where the tokens started plus what the network adds."""
        inner = torch.tanh(F.linear(self.weight, self.inner, self.inner_bias))
        return self.start + F.linear(inner, self.outer, self.outer_bias)


class Before:
    """Stands for a cache that holds a prefix and nothing else, for texts that are all there."""

    def __init__(self, sides: Tensor, documents: Int[Tensor, "batch time"] | None, shared: bool) -> None:
        self.sides, self.length = sides, sides.shape[2]
        self.numbers = preceding(documents, self.length, shared=shared)

    def documents(self, time: int) -> Int[Tensor, "batch whole"] | None:
        """Number the documents, the prefix a shared 0."""
        return self.numbers

    def standing(self, time: int) -> Int[Tensor, "batch whole"]:
        """Count positions, the prefix first."""
        if self.numbers is None:
            return torch.arange(self.length + time, device=self.sides.device)[None]
        return document_positions(self.numbers, shared=True)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values with the prefix before them."""
        return placed(self.sides[2 * layer], keys, None), placed(self.sides[2 * layer + 1], values, None)

    def recall(self, site: str, inputs: Tensor, taps: int) -> Tensor:
        """Return zeros: the tokens of a prefix have no hidden states to look back at."""
        return inputs.new_zeros(inputs.shape[0], taps, inputs.shape[2])

    def advance(self, time: int) -> None:
        """Keep nothing."""


class Filling:
    """An empty cache that gets a prefix with its first tokens, right before each row's first real one."""

    def __init__(self, sides: Tensor, cache: Cache, time: int) -> None:
        self.sides, self.cache, self.length = sides, cache, sides.shape[2]
        reserve(cache, self.length)
        self.source = sources(cache, self.length, time)

    def documents(self, time: int) -> Int[Tensor, "batch whole"] | None:
        """Say what is padding."""
        return self.cache.documents(self.length + time)

    def standing(self, time: int) -> Int[Tensor, "batch whole"]:
        """Count positions, the prefix first."""
        return self.cache.standing(self.length + time)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the prefix's and the text's."""
        both = (placed(self.sides[2 * layer + side], each, self.source) for side, each in enumerate((keys, values)))
        return self.cache.extend(layer, *both)

    def recall(self, site: str, inputs: Tensor, taps: int) -> Tensor:
        """Keep the inputs of the text."""
        return self.cache.recall(site, inputs, taps)

    def advance(self, time: int) -> None:
        """Count both as kept."""
        self.cache.advance(self.length + time)


class _Recorder:
    """Stands for an empty cache and remembers each layer's keys and values."""

    length = 0

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sides: list[Tensor] = []

    def documents(self, time: int) -> None:
        return None

    def standing(self, time: int) -> Tensor:
        return torch.arange(time, device=self.device)[None]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.sides += [keys[0], values[0]]
        return keys, values

    def recall(self, site: str, inputs: Tensor, taps: int) -> Tensor:
        return inputs.new_zeros(inputs.shape[0], taps, inputs.shape[2])

    def advance(self, time: int) -> None:
        pass


def prefix(model: Transformer, settings: PrefixSettings, *, seed: int) -> Transformer:
    """Freeze a model and give it a prefix, in place; without a projection it reads that as tokens drawn at random.

    Raises:
        ConfigError: the model has learned no positions beyond as many tokens.
    """
    check_room(model, settings.tokens)
    draw = torch.Generator().manual_seed(derive_seed(seed, "prefix"))
    start = _activations(model, torch.randint(model.shape.vocabulary, (1, settings.tokens), generator=draw))
    if not settings.projection:
        return precede(model, Prefix(start))
    return precede(model, Projected(start, model.shape.kv_heads * model.shape.head_dim, settings.projection, draw))


@torch.no_grad()
def _activations(model: Transformer, tokens: Int[Tensor, "1 virtual"]) -> Float[Tensor, "virtual channels"]:
    """Return the keys, after their rotation, and values of some tokens, as a prefix keeps them."""
    training, recorder = model.training, _Recorder(model.embed_tokens.weight.device)
    model.eval().hidden(tokens.to(recorder.device), cache=recorder)
    model.train(training)
    return torch.stack(recorder.sides).permute(2, 0, 1, 3).flatten(1).float()  # (virtual, sides x kv_heads x head_dim)
