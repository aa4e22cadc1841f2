"""The one thing a source yields and an objective reads.

`weight` counts the loss-bearing units (tokens, pairs or sequences) and is known before the forward pass, so the loop
divides a sum once by a global count: how examples are split into batches cannot change the gradient.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows of tokens with a weight for each prediction.

    `weights[:, t]` is the loss weight of predicting `tokens[:, t + 1]`; 0 where nothing is to be learned.
    `documents` numbers the documents of a packed row (padding has numbers of its own); None when each row is one. Where
    document 0 is `shared`, it is a prefix that the others continue: one prompt, computed once for all its answers.
    """

    tokens: Int[Tensor, "batch time"]
    weights: Float[Tensor, "batch predictions"]
    weight: float
    documents: Int[Tensor, "batch time"] | None = None
    shared: bool = False
    old_logps: Float[Tensor, "batch predictions"] | None = None
    reference_logps: Float[Tensor, "..."] | None = None
    advantages: Float[Tensor, "batch predictions"] | None = None

    def scaled(self, factor: float) -> "Batch":
        """Return the batch with every weight, and the count of its units, multiplied."""
        return dataclasses.replace(self, weights=self.weights * factor, weight=self.weight * factor)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device; copies from pinned memory do not wait for one another."""
        return self._moved(lambda value: value.to(device, non_blocking=value.is_pinned()))

    def pin(self) -> "Batch":
        """Return the batch in page-locked memory, from which a GPU copies while it computes."""
        return self._moved(lambda value: value.pin_memory())

    def _moved(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {name: value for name, value in self.state_dict().items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **{name: move(value) for name, value in tensors.items()})

    def state_dict(self) -> dict[str, Tensor | float | None]:
        """Return the fields by name, for a checkpoint taken between two minibatches of one rollout."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def pad(rows: list[np.ndarray], value: float, length: int | None = None) -> np.ndarray:
    """Stack rows of unequal length, filling on the right with `value`."""
    length = length or max(len(row) for row in rows)
    table = np.full((len(rows), length), value, dtype=rows[0].dtype)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return table


def collate(
    packs: list[list[tuple[np.ndarray, np.ndarray]]],
    *,
    pad_token: int,
    length: int | None = None,
    weight: float | None = None,
) -> Batch:
    """Make a batch of packed rows; each row is a list of (tokens, weights), both (length,).

    `weights[t]` belongs to predicting `tokens[t]`; a document's first token is never predicted, whatever its weight.
    Without `weight` the batch counts one unit for each prediction of non-zero weight.
    """
    tokens = pad([np.concatenate([piece for piece, _ in row]).astype(np.int64) for row in packs], pad_token, length)
    marks = [np.concatenate([_without_first(weights) for _, weights in row]).astype(np.float32) for row in packs]
    weights = pad(marks, 0.0, length)[:, 1:]
    numbers = [np.repeat(np.arange(len(row)), [len(piece) for piece, _ in row]) for row in packs]
    documents = pad(numbers, -1, length)
    single = all(len(row) == 1 for row in packs)  # causality alone keeps right padding out of sight
    return Batch(
        tokens=torch.from_numpy(tokens),
        weights=torch.from_numpy(np.ascontiguousarray(weights)),
        weight=float((weights != 0).sum()) if weight is None else weight,
        documents=None if single else torch.from_numpy(documents),
    )


def _without_first(weights: np.ndarray) -> np.ndarray:
    return np.concatenate([weights[:1] * 0, weights[1:]])  # of an empty document nothing is left either


def join(first: Batch, second: Batch) -> Batch:
    """Stack two batches of plain rows, the shorter ones padded on the right; their weights add up."""
    both = (first, second)
    length = max(batch.tokens.shape[1] for batch in both)
    numbers = [torch.zeros_like(batch.tokens) if batch.documents is None else batch.documents for batch in both]
    return Batch(
        tokens=torch.cat([_widened(batch.tokens, length, 0) for batch in both]),
        weights=torch.cat([_widened(batch.weights, length - 1, 0) for batch in both]),
        weight=first.weight + second.weight,
        documents=torch.cat([_widened(each, length, -1) for each in numbers]),
    )


def _widened(table: Tensor, length: int, value: int) -> Tensor:
    return torch.nn.functional.pad(table, (0, length - table.shape[1]), value=value)
