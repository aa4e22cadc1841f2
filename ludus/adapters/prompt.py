"""Prompt tuning: the embeddings of a few tokens before every text, learned (arXiv 2104.08691).

They are run through the layers like any other token, and start as the embeddings of words: of a text, or of tokens
drawn at random. So the model reads something else from the first step on: the identity is not to be had.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ludus.adapters.settings import PromptSettings
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
from ludus.base.errors import ConfigError
from ludus.base.seeds import derive_seed
from ludus.model.architecture import Architecture
from ludus.model.sight import Sight
from ludus.model.transformer import Transformer


class Prompt(Virtual):
    """Rows of the size of an embedding."""

    peft_type = "PROMPT_TUNING"

    @staticmethod
    def channels(shape: Architecture) -> int:
        """Return the size of an embedding."""
        return shape.width

    def hidden(self, model: Transformer, tokens: Int[Tensor, "batch time"], where: Where) -> Tensor:
        """Run virtual tokens and text, or the text alone where a cache has the virtual ones; return the text's."""
        positions, documents, shared, cache = (where[name] for name in ("positions", "documents", "shared", "cache"))
        rows, time = tokens.shape
        fresh = cache is None or not cache.length
        count, source = (self.count if fresh else 0), None
        if fresh and cache is not None:
            reserve(cache, count)
            source = sources(cache, count, time)
        if positions is not None and fresh:
            positions = _before(torch.arange(count, device=tokens.device), positions.expand(rows, -1), source)
        sight = Sight(
            model.shape,
            tokens.new_empty(rows, count + time),
            positions=positions,
            documents=preceding(documents, count, shared=shared),
            shared=documents is not None,
            cache=cache,
        )
        limit_reach(sight, model.shape.context if cache is not None else None, self.count)
        with model.autocast():
            x = _words(model, tokens, TextSight(sight, self.count, documents, shared, time))
            if fresh:
                x = placed(self.weight, x, source)
            x = through(model, _embedded(model, x, sight), sight)
            if cache is not None:
                cache.advance(count + time)
            return model.norm(x[:, -time:])

    def config(self, shape: Architecture) -> dict[str, Any]:
        """Return the sizes."""
        return {
            "token_dim": shape.width,
            "num_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "prompt_tuning_init": "RANDOM",
        }


def _before(virtual: Tensor, real: Tensor, source: Tensor | None) -> Tensor:
    return placed(virtual[:, None], real[..., None], source)[..., 0]


def _words(model: Any, tokens: Tensor, text: Sight) -> Tensor:
    """Embed the text; runs of tokens have vectors of their own, in which virtual tokens take no part."""
    x = model.embed_tokens(tokens)
    return x if model.ngrams is None else x + model.ngrams(tokens, text)


def _embedded(model: Any, x: Tensor, sight: Sight) -> Tensor:
    """Do to virtual and real tokens alike what else `Transformer` does to its embedding."""
    if model.embed_positions is not None:
        x = x + model.embed_positions(sight.positions)
    if model.embedding_convolution is not None:
        x = model.embedding_convolution(x, sight)
    if model.embedding_norm is not None:
        x = model.embedding_norm(x)
    return model.dropout(x)


def prompt(
    model: Transformer, settings: PromptSettings, *, seed: int, tokens: Sequence[int] | None = None
) -> Transformer:
    """Freeze a model and give it virtual tokens that start as the words of `tokens`, in place.

    `tokens` are repeated, or cut, to `settings.tokens`; without them the words are drawn at random.

    Raises:
        ConfigError: there are no words, or the model has learned no positions beyond as many tokens.
    """
    check_room(model, settings.tokens)
    if tokens is not None and not len(tokens):
        raise ConfigError("adapter.text is empty; give the words that the prompt starts as, or leave it out")
    if tokens is None:
        draw = torch.Generator().manual_seed(derive_seed(seed, "prompt"))
        chosen = torch.randint(model.shape.vocabulary, (settings.tokens,), generator=draw)
    else:
        chosen = torch.tensor(tokens)[torch.arange(settings.tokens) % len(tokens)]
    words = model.embed_tokens.weight
    return precede(model, Prompt(words.detach()[chosen.to(words.device)].float()))
