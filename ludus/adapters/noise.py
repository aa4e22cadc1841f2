"""NEFTune: uniform noise on the embeddings of a text while training (arXiv 2310.05914), against learning by rote.

The noise of a token is as large as the length of its own document says, however many share its row; padding gets none,
nor do virtual tokens. It is drawn from torch's global generator, which is part of a checkpoint, like dropout. The model
never learns of it: evaluation and decoding are untouched, and `silence` takes it off.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ludus.adapters.virtual import Coat, put_on, take_off
from ludus.base.errors import ConfigError
from ludus.model.transformer import Transformer


class Noisy(Coat):
    """A transformer whose embeddings are noisy while it trains."""

    place = 0
    noise_alpha: float

    def hidden(self, tokens: Int[Tensor, "batch time"], **where: Any) -> Float[Tensor, "batch time channels"]:
        """Return the hidden states of `Transformer.hidden`, in training those of noisy embeddings."""
        inner = super().hidden  # type: ignore[misc]
        if not self.training or where.get("cache") is not None:  # type: ignore[attr-defined]
            return inner(tokens, **where)
        lengths = document_lengths(tokens, where.get("documents"), shared=where.get("shared", False))

        def disturb(module: Any, inputs: Any, embedded: Tensor) -> Tensor:
            return embedded + noise_of(embedded, lengths, self.noise_alpha)

        handle = self.embed_tokens.register_forward_hook(disturb)  # type: ignore[attr-defined]
        try:
            return inner(tokens, **where)
        finally:
            handle.remove()


def noise(model: Transformer, alpha: float) -> Transformer:
    """Disturb a model's embeddings while it trains, in place; `alpha` is 5 to 15 in the paper, and 0 is no noise.

    Raises:
        ConfigError: alpha is negative.
    """
    if alpha < 0:
        raise ConfigError(f"noise of {alpha} on embeddings; set it to 0 for none, or to 5, as is usual")
    if alpha == 0:
        return silence(model)
    model.noise_alpha = alpha  # type: ignore[assignment]
    return put_on(model, Noisy)


def silence(model: Transformer) -> Transformer:
    """Take the noise off, in place."""
    return take_off(model, Noisy)


def document_lengths(
    tokens: Int[Tensor, "batch time"], documents: Int[Tensor, "batch time"] | None, *, shared: bool = False
) -> Int[Tensor, "batch time"]:
    """Return how long each token's document is; 0 for padding. Behind a shared document 0, texts are counted with it.

    Without `documents` each row is one, as wide as the batch: what pads it on the right cannot be told from it.
    """
    if documents is None:
        return torch.full_like(tokens, tokens.shape[1])
    runs = torch.zeros_like(documents)  # which run of equal numbers, from 0
    runs[:, 1:] = (documents[:, 1:] != documents[:, :-1]).cumsum(dim=1)
    lengths = torch.zeros_like(runs).scatter_add(1, runs, torch.ones_like(runs)).gather(1, runs)
    if shared:
        prompt = (documents == 0).sum(dim=1, keepdim=True)
        lengths = torch.where(documents > 0, lengths + prompt, lengths)
    return lengths.masked_fill(documents < 0, 0)


def noise_of(
    embedded: Float[Tensor, "batch time channels"], lengths: Int[Tensor, "batch time"], alpha: float
) -> Float[Tensor, "batch time channels"]:
    """Draw noise between -size and size, alpha / sqrt(length x channels), for each token (algorithm 1)."""
    size = alpha * (lengths.clamp(min=1) * embedded.shape[-1]).rsqrt() * (lengths > 0)
    return torch.rand_like(embedded).mul_(2).sub_(1).mul_(size[..., None].to(embedded.dtype))
