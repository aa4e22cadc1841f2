"""How likely a model finds given tokens, example by example.

What lives here: summed negative log-likelihoods of weighted tokens, and how many of them were the model's own first
choice. What does not: where the tokens come from. The one idea: an answer that is right token by token, each after the
right ones before it, is the greedy answer, so exactness needs no sampling.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ludus.data.batch import Batch, collate
from ludus.data.pairs import Example
from ludus.model.transformer import Transformer

LOGITS_AT_ONCE = 1 << 23  # entries


class Found(NamedTuple):
    """What a model thinks of one example: nats of its weighted tokens, their count, and how many it would have said."""

    nats: float
    tokens: int
    right: int

    @property
    def exact(self) -> bool:
        """Tell whether the greedy answer is the example's, to its end."""
        return self.right == self.tokens


@torch.no_grad()
def likelihoods(model: Transformer, examples: Sequence[Example], *, rows: int = 8, pad_token: int = 0) -> list[Found]:
    """Return what the model thinks of each example, (tokens, weights), where its weight is not zero; without dropout.

    Examples of similar length run together, at most `rows` at a time; the result is in their order.
    """
    training = model.training
    model.eval()
    order = sorted(range(len(examples)), key=lambda index: len(examples[index][0]))
    found: dict[int, Found] = {}
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        batch = collate([[examples[index]] for index in chosen], pad_token=pad_token)
        found |= dict(zip(chosen, _of_rows(model, batch.to(model.embed_tokens.weight.device)), strict=True))
    model.train(training)
    return [found[index] for index in range(len(examples))]


def total(found: Sequence[Found]) -> Found:
    """Add up."""
    return Found(
        sum(each.nats for each in found), sum(each.tokens for each in found), sum(each.right for each in found)
    )


def _of_rows(model: Transformer, batch: Batch) -> list[Found]:
    rows, predictions = batch.weights.shape
    places = batch.weights.flatten().nonzero()[:, 0]
    targets = batch.tokens[:, 1:].flatten()[places]
    hidden = model.hidden(batch.tokens[:, :-1]).flatten(0, 1)[places]
    nats, right = _against(model, hidden, targets)
    table = torch.zeros(3, rows, dtype=torch.float64, device=places.device)
    each = torch.stack([nats.double(), torch.ones_like(nats).double(), right.double()])
    table.index_add_(1, places // predictions, each)
    return [Found(float(loss), int(count), int(hits)) for loss, count, hits in table.T.tolist()]


def _against(model: Transformer, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return each target's negative log-probability, and whether no token is likelier."""
    size = max(1, LOGITS_AT_ONCE // model.shape.vocabulary)
    nats, right = [], []
    for part, wanted in zip(hidden.split(size), targets.split(size), strict=True):
        logits = model.logits(part)
        nats.append(-logits.log_softmax(dim=-1).gather(1, wanted[:, None])[:, 0])
        right.append(logits.argmax(dim=-1) == wanted)
    if not nats:
        return hidden.new_zeros(0), hidden.new_zeros(0)
    return torch.cat(nats), torch.cat(right)
