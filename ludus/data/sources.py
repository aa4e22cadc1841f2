"""Sources: endless, resumable iterators of batches over fixed data.

The order of an epoch is a function of (seed, epoch) alone. A source's whole state is where it stands, so a resumed run
continues the same stream, whatever the number of ranks.
"""

from collections.abc import Callable, Iterator

import numpy as np

from ludus.base.seeds import derive_seed
from ludus.data.batch import Batch, collate, join
from ludus.data.packing import best_fit, cut
from ludus.data.shards import TokenShards


class Rows:
    """Yield batches of `rows` packed rows, epoch after epoch.

    `pieces(epoch)` gives the pieces of that epoch as (pieces, 2) starts and stops into `tokens` and `weights`.
    With several `ranks`, consecutive batches go to the ranks in turn.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        weights: np.ndarray | None,
        pieces: Callable[[int], np.ndarray],
        *,
        length: int,
        rows: int,
        pad_token: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.stream, self.weights, self.pieces = tokens, weights, pieces
        self.length, self.rows, self.pad_token = length, rows, pad_token
        self.seed, self.rank, self.ranks = seed, rank, ranks
        self.epoch, self.cursor, self.tokens = 0, 0, 0
        self._planned: tuple[int, list[list[tuple[int, int]]]] = (-1, [])

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        taken = [self._take() for _ in range(self.ranks)]
        self.tokens += sum(stop - start for rows in taken for row in rows for start, stop in row)
        return collate([self._read(row) for row in taken[self.rank]], pad_token=self.pad_token, length=self.length)

    def _take(self) -> list[list[tuple[int, int]]]:
        """Take the next `rows` rows; the end of an epoch is filled from the next, so that no row is dropped."""
        taken: list[list[tuple[int, int]]] = []
        while len(taken) < self.rows:
            plan = self.plan(self.epoch)
            fresh = plan[self.cursor : self.cursor + self.rows - len(taken)]
            taken += fresh
            self.cursor += len(fresh)
            if self.cursor == len(plan):
                self.epoch, self.cursor = self.epoch + 1, 0
        return taken

    def plan(self, epoch: int) -> list[list[tuple[int, int]]]:
        """Return the rows of an epoch, each a list of (start, stop), in the order they are read."""
        if self._planned[0] != epoch:
            generator = np.random.default_rng(derive_seed(self.seed, "epoch", epoch))
            ranges = generator.permutation(self.pieces(epoch))
            rows = best_fit(ranges[:, 1] - ranges[:, 0], self.length)
            order = generator.permutation(len(rows))
            self._planned = epoch, [[tuple(ranges[piece].tolist()) for piece in rows[row]] for row in order]
        return self._planned[1]

    def _read(self, row: list[tuple[int, int]]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            (self.stream[a:b], np.ones(b - a, dtype=np.float32) if self.weights is None else self.weights[a:b])
            for a, b in row
        ]

    def state_dict(self) -> dict[str, int]:
        """Return where the source stands."""
        return {"epoch": self.epoch, "cursor": self.cursor, "tokens": self.tokens}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Stand where `state` says."""
        self.epoch, self.cursor, self.tokens = state["epoch"], state["cursor"], state["tokens"]


class Beside:
    """Yield the batches of two sources as one: rows of the second, each token weighing `weight`, under the first's."""

    def __init__(self, first: Rows, second: Rows, *, weight: float) -> None:
        self.first, self.second, self.weight = first, second, weight

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return join(next(self.first), next(self.second).scaled(self.weight))

    @property
    def tokens(self) -> int:
        """Count the tokens of both."""
        return self.first.tokens + self.second.tokens

    def state_dict(self) -> dict[str, dict[str, int]]:
        """Return where both stand."""
        return {"first": self.first.state_dict(), "second": self.second.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, int]]) -> None:
        """Stand where `state` says."""
        self.first.load_state_dict(state["first"])
        self.second.load_state_dict(state["second"])


def pretraining(
    shards: TokenShards, *, context: int, rows: int, pad_token: int, seed: int, rank: int = 0, ranks: int = 1
) -> Rows:
    """Read documents in pieces of `context` predictions, cut at other places in each epoch."""

    def pieces(epoch: int) -> np.ndarray:
        phase = derive_seed(seed, "phase", epoch) % context if epoch else 0
        return cut(shards.offsets, context + 1, phase)

    return Rows(
        shards.tokens,
        None,
        pieces,
        length=context + 1,
        rows=rows,
        pad_token=pad_token,
        seed=seed,
        rank=rank,
        ranks=ranks,
    )


def in_order(
    shards: TokenShards, *, context: int, rows: int, pad_token: int, limit: int | None = None
) -> Iterator[Batch]:
    """Read every prediction once, for validation; at most `limit` rows, spread evenly over the text."""
    ranges = cut(shards.offsets, context + 1)
    packed = best_fit(ranges[:, 1] - ranges[:, 0], context + 1)
    if limit is not None and len(packed) > limit:
        packed = [packed[index] for index in np.linspace(0, len(packed) - 1, limit).astype(int)]
    for start in range(0, len(packed), rows):
        chosen = [[ranges[piece] for piece in row] for row in packed[start : start + rows]]
        yield collate(
            [[(shards.tokens[a:b], np.ones(b - a, dtype=np.float32)) for a, b in row] for row in chosen],
            pad_token=pad_token,
            length=context + 1,
        )
