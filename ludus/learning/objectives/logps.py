"""Log-probabilities of the tokens in a batch, computed only where something is learned from them."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ludus.data.batch import Batch
from ludus.model.head import target_logps
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
    found, entropies = _of_targets(model, hidden[wanted], batch.tokens[:, 1:][wanted], entropy)
    logps = torch.zeros(wanted.shape, dtype=found.dtype).masked_scatter(wanted, found)
    return TokenLogps(logps, entropies.sum() if entropy else None)


def _of_targets(model: Transformer, hidden: Tensor, targets: Tensor, entropy: bool) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and entropies; a head under surgery is run as it is, a plain one in chunks."""
    if type(model.lm_head) is nn.Linear:
        return target_logps(hidden, model.lm_head.weight, targets, precision=model.precision, entropy=entropy)
    logps = model.logits(hidden).log_softmax(dim=-1)
    entropies = -(logps.detach().exp() * logps.detach()).sum(dim=-1)
    return logps.gather(1, targets[:, None])[:, 0], entropies


@torch.no_grad()
def frozen_logps(model: Transformer, batch: Batch) -> Float[Tensor, "batch predictions"]:
    """Return `token_logps` without a graph and without dropout: for references, which act on data."""
    training = model.training
    model.eval()
    logps = token_logps(model, batch).logps
    model.train(training)
    return logps
