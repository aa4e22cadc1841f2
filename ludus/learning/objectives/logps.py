"""What the head says of the tokens in a batch, computed only where something is learned from them.

Which positions those are is data and known before the model runs; where they are nearly all, gathering them would cost
more than it saves.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ludus.data.batch import Batch
from ludus.model.head import LossSums, plain_loss, summed_loss, target_logps
from ludus.model.transformer import Transformer

WORTH_GATHERING = 0.75  # of an accelerator's positions: to count them there, the processor would wait for it


class TokenLogps(NamedTuple):
    """`logps` is 0 where the batch's weight is 0; `entropy` is the sum over weighted positions, in nats."""

    logps: Float[Tensor, "batch predictions"]
    entropy: Float[Tensor, ""] | None


class Learned(NamedTuple):
    """The positions something is learned from: row numbers in `places`, or None where every position is among them."""

    hidden: Float[Tensor, "rows channels"]
    targets: Int[Tensor, " rows"]
    weights: Float[Tensor, " rows"]
    places: Int[Tensor, " rows"] | None


def learned(model: Transformer, batch: Batch) -> Learned:
    """Run the model and keep the positions whose weight is not zero."""
    weights, targets = batch.weights.flatten(), batch.tokens[:, 1:].flatten()
    places = _places(weights, batch.weight)
    documents = None if batch.documents is None else batch.documents[:, :-1]
    hidden = model.hidden(batch.tokens[:, :-1], documents=documents, shared=batch.shared).flatten(0, 1)
    if places is None:
        return Learned(hidden, targets, weights, None)
    return Learned(hidden.index_select(0, places), targets[places], weights[places], places)


def token_logps(model: Transformer, batch: Batch, *, entropy: bool = False) -> TokenLogps:
    """Return log p(token t + 1 | tokens up to t) in float32, running the output head on weighted positions only."""
    hidden, targets, weights, places = learned(model, batch)
    found, entropies = _of_targets(model, hidden, targets, entropy)
    found, entropies = (values.masked_fill(weights == 0, 0.0) for values in (found, entropies))
    if places is not None:
        found = found.new_zeros(batch.weights.numel()).index_copy(0, places, found)
    return TokenLogps(found.view_as(batch.weights), entropies.sum() if entropy else None)


def summed_nll(model: Transformer, batch: Batch, *, z_loss: float, label_smoothing: float) -> LossSums:
    """Sum the weighted negative log-likelihood, with what `ludus.model.head.summed_loss` may add to it."""
    hidden, targets, weights, _ = learned(model, batch)
    if _is_plain(model.lm_head):
        ones = weights.device.type == "cpu" and bool((weights == 1).all())
        factors = None if ones else weights
        return summed_loss(
            hidden,
            model.lm_head.weight,
            targets,
            factors,
            z_loss=z_loss,
            label_smoothing=label_smoothing,
            **_how(model),
        )
    return plain_loss(model.logits(hidden), targets, weights, z_loss=z_loss, label_smoothing=label_smoothing)


@torch.no_grad()
def frozen_logps(model: Transformer, batch: Batch) -> Float[Tensor, "batch predictions"]:
    """Return `token_logps` without a graph and without dropout: for references, which act on data."""
    training = model.training
    model.eval()
    logps = token_logps(model, batch).logps
    model.train(training)
    return logps


def _places(weights: Tensor, units: float) -> Tensor | None:
    """Return the numbers of the weighted positions; None if they are all, or too many to be worth a look."""
    if weights.device.type == "cpu":
        count = int(weights.count_nonzero())
        return None if count == len(weights) else weights.nonzero()[:, 0]
    return None if units >= WORTH_GATHERING * len(weights) else weights.nonzero()[:, 0]


def _of_targets(model: Transformer, hidden: Tensor, targets: Tensor, entropy: bool) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and entropies; a head under surgery is run as it is, a plain one in chunks."""
    if _is_plain(model.lm_head):
        return target_logps(hidden, model.lm_head.weight, targets, entropy=entropy, **_how(model))[:2]
    logps = model.logits(hidden).log_softmax(dim=-1)
    entropies = -(logps.detach().exp() * logps.detach()).sum(dim=-1)
    return logps.gather(1, targets[:, None])[:, 0], entropies


def _is_plain(head: nn.Module) -> bool:
    """Tell whether a head is one matrix product: untouched, or trained whole beside its frozen original."""
    return type(getattr(head, "copy", head)) is nn.Linear


def _how(model: Transformer) -> dict[str, Any]:
    """Return how a model's head is run; `model.head_chunk_entries` may be set: 0 = all logits at once."""
    return {
        "precision": model.precision,
        "softcap": getattr(model.shape, "logit_softcap", None),
        "bias": model.lm_head.bias,
        "chunk_entries": getattr(model, "head_chunk_entries", None),
    }
