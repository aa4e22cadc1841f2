"""Sources: endless, resumable iterators of batches over fixed data.

The order of an epoch is a function of (seed, epoch) alone. A source's whole state is where it stands, so a resumed run
continues the same stream, whatever the number of ranks.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ludus.base.seeds import derive_seed
from ludus.data.batch import Batch, join
from ludus.data.files import Tokens
from ludus.data.packing import Cuts, Pieces, cut
from ludus.data.plan import BLOCK, Packed, Plan, pack
from ludus.data.rows import read, shorten
from ludus.data.shards import TokenShards

ByBatch = Callable[[int], int]  # a number by the number of the batch, as ramps are


class Rows:
    """Yield batches of `rows` packed rows, epoch after epoch.

    `pieces(epoch)` gives the pieces of that epoch as (pieces, 2) starts and stops into `tokens` and `weights`. Each
    stands `alone` in a row, then no longer than the longest of a batch, or is packed with others; documents are
    `numbered` always, or only where several share a row.
    With several `ranks`, consecutive batches go to the ranks in turn. `rows` may depend on the number of the batch, and
    so may `context`, the predictions in a row, which are cut shorter where it says less than `length` - 1.
    """

    def __init__(
        self,
        tokens: Tokens,
        weights: np.ndarray | None,
        pieces: Callable[[int], Pieces],
        *,
        length: int,
        rows: int | ByBatch,
        pad_token: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        context: ByBatch | None = None,
        block: int = BLOCK,
        alone: bool = False,
        numbered: bool = False,
    ) -> None:
        self.numbered = numbered
        self.stream, self.weights = plain(tokens), weights
        self.planned = Plan(pieces, length=length, seed=seed, size=block, alone=alone)
        self.length, self.pad_token, self.rank, self.ranks = length, pad_token, rank, ranks
        self.rows = rows if callable(rows) else lambda batch: rows
        self.context = context
        self.batches, self.tokens, self.padded, self.trained = 0, 0, 0, 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        count = self.rows(self.batches)
        taken = [self.planned.take(count) for _ in range(self.ranks)]
        length = max(int(rows.sizes.max()) for rows in taken) if self.planned.alone else self.length
        batch = read(
            self.stream,
            self.weights,
            taken[self.rank],
            length=length,
            pad_token=self.pad_token,
            numbered=self.numbered,
        )
        tokens = sum(int(rows.sizes.sum()) for rows in taken)
        self.tokens += tokens
        self.trained += tokens - sum(len(rows.ranges) for rows in taken)  # but for each piece's first, which begins it
        self.padded += count * self.ranks * length - tokens
        self.batches += 1
        return batch if self.context is None else shorten(batch, self.context(self.batches - 1))

    @property
    def epoch(self) -> int:
        """Count the epochs that were read to their end."""
        return self.planned.epoch

    def plan(self, epoch: int) -> list[list[tuple[int, int]]]:
        """Return the rows of an epoch, each a list of (start, stop), in the order they are read."""
        return [[(start, stop) for start, stop in row.tolist()] for row in self.planned.rows(epoch).listed()]

    def outlook(self) -> dict[str, float]:
        """Return what an epoch holds: tokens, rows and the share of padding; from its first block where it has more."""
        there, blocks = self.planned.pieces(0), self.planned.blocks(0)
        first = self.planned.at(0, 0).rows
        tokens = int(first.sizes.sum())
        scale = len(there) / len(first.ranges) if blocks > 1 else 1.0
        padding = 1 - tokens / (len(first) * self.length)
        return {
            "tokens": round(tokens * scale),
            "rows": round(len(first) * scale),
            "padding": padding,
            "blocks": blocks,
        }

    def account(self) -> dict[str, int]:
        """Return what became of all tokens so far: predicted, padded beside them, and dropped, which none is."""
        return {"trained": self.trained, "padded": self.padded, "dropped": self.planned.dropped}

    @property
    def metrics(self) -> dict[str, float]:
        """Return the share of padding so far and the epochs that were begun."""
        places = self.tokens + self.padded
        return {"padding": self.padded / places if places else 0.0, "epoch": float(self.planned.epoch)}

    def state_dict(self) -> dict[str, int]:
        """Return where the source stands."""
        counts = {"tokens": self.tokens, "batches": self.batches, "trained": self.trained, "padded": self.padded}
        return self.planned.state_dict() | counts

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` says."""
        self.planned.load_state_dict(state)
        self.tokens, self.batches = state["tokens"], state["batches"]
        self.trained, self.padded = state["trained"], state["padded"]


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
    shards: TokenShards,
    *,
    context: int,
    rows: int | ByBatch,
    pad_token: int,
    seed: int,
    rank: int = 0,
    ranks: int = 1,
    shortened: ByBatch | None = None,
) -> Rows:
    """Read documents in pieces of `context` predictions, cut at other places in each epoch.

    `shortened` gives a context that divides this one by the number of the batch, as `ludus.data.ramps.context_ramp`.
    """
    return Rows(
        shards.tokens,
        None,
        cuts(shards, context, seed),
        length=context + 1,
        rows=rows,
        pad_token=pad_token,
        seed=seed,
        rank=rank,
        ranks=ranks,
        context=shortened,
    )


def cuts(shards: TokenShards, context: int, seed: int) -> Callable[[int], Pieces]:
    """Return the pieces of documents by epoch, with a phase of its own for each epoch but the first."""

    def pieces(epoch: int) -> Cuts:
        phase = derive_seed(seed, "phase", epoch) % context if epoch else 0
        return Cuts(shards.offsets, context + 1, phase)

    return pieces


def plain(tokens: Tokens) -> Tokens:
    """Return the plain view of a memory map: slicing a `memmap` itself costs more than what it reads."""
    return np.asarray(tokens) if isinstance(tokens, np.ndarray) else tokens


def in_order(
    shards: TokenShards, *, context: int, rows: int, pad_token: int, limit: int | None = None
) -> Iterator[Batch]:
    """Read every prediction once, for validation; at most `limit` rows, spread evenly over the text."""
    packed = pack(cut(shards.offsets, context + 1), context + 1)
    chosen = packed.listed()
    if limit is not None and len(chosen) > limit:
        chosen = [chosen[index] for index in np.linspace(0, len(chosen) - 1, limit).astype(int)]
    for start in range(0, len(chosen), rows):
        here = chosen[start : start + rows]
        batch = Packed(np.concatenate(here), np.array([len(row) for row in here]))
        yield read(plain(shards.tokens), None, batch, length=context + 1, pad_token=pad_token)
