"""Log-probabilities of the tokens in a batch, computed only where something is learned from them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ludus.data.batch import Batch
from ludus.model.transformer import Transformer


class TokenLogps(NamedTuple):
    """`logps` is 0 where the batch's weight is 0; `entropy` is the sum over weighted positions, in nats."""

    logps: Float[Tensor, "batch predictions"]
    entropy: Float[Tensor, ""] | None


def token_logps(model: Transformer, batch: Batch, *, entropy: bool = False) -> TokenLogps:
    """Return log p(token t + 1 | tokens up to t) in float32, running the output head on weighted positions only."""
    documents = None if batch.documents is None else batch.documents[:, :-1]
    hidden = model.hidden(batch.tokens[:, :-1], documents=documents, shared=batch.shared)
    wanted = batch.weights != 0  # (batch, predictions)
    logits = model.logits(hidden[wanted])  # (wanted, vocab)
    found = -F.cross_entropy(logits, batch.tokens[:, 1:][wanted], reduction="none")
    logps = torch.zeros_like(batch.weights).masked_scatter(wanted, found)
    return TokenLogps(logps, _entropy(logits.detach()) if entropy else None)


@torch.no_grad()
def frozen_logps(model: Transformer, batch: Batch) -> Float[Tensor, "batch predictions"]:
    """Return `token_logps` without a graph and without dropout: for references, which act on data."""
    training = model.training
    model.eval()
    logps = token_logps(model, batch).logps
    model.train(training)
    return logps


def _entropy(logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, ""]:
    logps = logits.log_softmax(dim=-1)
    return -(logps.exp() * logps).sum()
