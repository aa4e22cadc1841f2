"""The source of preference learning: pairs of answers to one prompt, with what the reference model says of them."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from ludus.data.batch import Batch, collate
from ludus.data.epochs import Epochs

Example = tuple[np.ndarray, np.ndarray]  # tokens and weights, both (length,)


class Pair(NamedTuple):
    """A better and a worse answer, each a whole conversation."""

    chosen: Example
    rejected: Example


def stack(pairs: Sequence[Pair], pad_token: int) -> Batch:
    """Make a batch of the chosen answers above the rejected ones; its unit is the pair."""
    rows = [[pair.chosen] for pair in pairs] + [[pair.rejected] for pair in pairs]
    return collate(rows, pad_token=pad_token, weight=float(len(pairs)))


class Pairs:
    """Yield batches of `size` pairs, epoch after epoch.

    `reference` holds log-probabilities of the whole answers under the reference: (pairs, 2), chosen first.
    """

    def __init__(self, pairs: Sequence[Pair], reference: np.ndarray, *, size: int, pad_token: int, seed: int) -> None:
        self.order, self.tokens = Epochs(len(pairs), seed), 0
        self.pairs, self.reference = pairs, torch.from_numpy(reference).float()
        self.size, self.pad_token = size, pad_token

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        chosen = self.order.take(self.size)
        pairs = [self.pairs[index] for index in chosen]
        self.tokens += sum(len(pair.chosen[0]) + len(pair.rejected[0]) for pair in pairs)
        return dataclasses.replace(stack(pairs, self.pad_token), reference_logps=self.reference[chosen].T.flatten())

    def state_dict(self) -> dict[str, int]:
        """Return where the source stands."""
        return self.order.state_dict() | {"tokens": self.tokens}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Stand where `state` says."""
        self.order.load_state_dict(state)
        self.tokens = state["tokens"]
