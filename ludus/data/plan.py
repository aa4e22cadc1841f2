"""The order of rows, epoch after epoch, planned a block at a time.

The pieces of an epoch are shuffled as a whole; each block of the shuffled order is packed into rows by itself. A block
is a function of (seed, epoch, block) alone, so planning takes neither time nor memory in proportion to the corpus, and
where the plan stands is three numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from ludus.base.errors import CheckpointError, DataError
from ludus.base.seeds import derive_seed
from ludus.data.packing import Pieces, best_fit

BLOCK = 1 << 14  # pieces; packed in some 30 ms, and enough for rows that are as good as full
_ROUNDS = 6


@dataclass(frozen=True)
class Packed:
    """Some rows: their pieces one after the other, (pieces, 2) starts and stops, and the count of pieces in each."""

    ranges: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def sizes(self) -> np.ndarray:
        """Return the tokens in each piece."""
        return self.ranges[:, 1] - self.ranges[:, 0]

    def listed(self) -> list[np.ndarray]:
        """Return each row's own pieces."""
        return np.split(self.ranges, np.cumsum(self.counts)[:-1]) if len(self) else []


def together(parts: Sequence[Packed]) -> Packed:
    """Put rows under rows."""
    if len(parts) == 1:
        return parts[0]
    return Packed(np.concatenate([part.ranges for part in parts]), np.concatenate([part.counts for part in parts]))


def pack(
    ranges: np.ndarray, length: int, generator: np.random.Generator | None = None, *, alone: bool = False
) -> Packed:
    """Fit pieces into rows, or give each a row `alone`, and shuffle the rows where there is a generator."""
    rows = [[piece] for piece in range(len(ranges))] if alone else best_fit(ranges[:, 1] - ranges[:, 0], length)
    if generator is not None:
        rows = [rows[row] for row in generator.permutation(len(rows)).tolist()]
    pieces = np.fromiter(chain.from_iterable(rows), np.int64)
    return Packed(ranges[pieces], np.fromiter(map(len, rows), np.int64))


@dataclass(frozen=True)
class Block:
    """The rows of one block in the order they are read, and the tokens that found no place in them: none, ever."""

    epoch: int
    number: int
    rows: Packed
    starts: np.ndarray  # of each row, in its pieces; and their number
    dropped: int

    def between(self, first: int, stop: int) -> Packed:
        """Return some of the rows."""
        return Packed(self.rows.ranges[self.starts[first] : self.starts[stop]], self.rows.counts[first:stop])


class Plan:
    """Deal out packed rows; the end of an epoch is followed by the next, so that no row is dropped.

    `pieces(epoch)` gives the pieces of that epoch, each at most `length` tokens; `size` is how many make a block. Each
    stands `alone` in its row, or with others.
    """

    def __init__(
        self, pieces: Callable[[int], Pieces], *, length: int, seed: int, size: int = BLOCK, alone: bool = False
    ) -> None:
        self.pieces, self.length, self.seed, self.size, self.alone = pieces, length, seed, size, alone
        self.epoch, self.block, self.cursor, self.dropped = 0, 0, 0, 0
        self._epoch: tuple[int, Pieces] | None = None
        self._block: Block | None = None

    def take(self, count: int) -> Packed:
        """Return the next `count` rows."""
        taken: list[Packed] = []
        while count:
            block = self.at(self.epoch, self.block)
            stop = min(self.cursor + count, len(block.rows))
            taken.append(block.between(self.cursor, stop))
            count -= stop - self.cursor
            self.cursor = stop
            if stop == len(block.rows):
                self.dropped += block.dropped
                self.block, self.cursor = self.block + 1, 0
                if self.block == self.blocks(self.epoch):
                    self.epoch, self.block = self.epoch + 1, 0
        return together(taken)

    def at(self, epoch: int, number: int) -> Block:
        """Return a block of an epoch; the last one asked for is kept."""
        if self._block is None or (self._block.epoch, self._block.number) != (epoch, number):
            pieces = self._of_epoch(epoch)
            generator = np.random.default_rng(derive_seed(self.seed, "epoch", epoch, "block", number))
            if len(pieces) <= self.size:
                numbers = generator.permutation(len(pieces))
            else:
                first = number * self.size
                wanted = np.arange(first, min(first + self.size, len(pieces)))
                numbers = shuffled(wanted, len(pieces), derive_seed(self.seed, "epoch", epoch))
            ranges = pieces[numbers]
            rows = pack(ranges, self.length, generator, alone=self.alone)
            dropped = int((ranges[:, 1] - ranges[:, 0]).sum() - rows.sizes.sum())
            self._block = Block(epoch, number, rows, np.cumsum([0, *rows.counts]), dropped)
        return self._block

    def blocks(self, epoch: int) -> int:
        """Return the number of blocks in an epoch. Raises `DataError` where there is nothing to read."""
        pieces = len(self._of_epoch(epoch))
        if not pieces:
            raise DataError("there are no tokens to train on; give the corpus more text")
        return -(-pieces // self.size)

    def rows(self, epoch: int) -> Packed:
        """Return all rows of an epoch; for small corpora, since this plans every block."""
        return together([self.at(epoch, number).rows for number in range(self.blocks(epoch))])

    def state_dict(self) -> dict[str, int]:
        """Return where the plan stands."""
        return {"epoch": self.epoch, "block": self.block, "cursor": self.cursor, "dropped": self.dropped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` says. Raises `CheckpointError` for the state of a plan without blocks."""
        if "block" not in state:
            raise CheckpointError("the checkpoint's data was planned by an older ludus; start the stage again")
        self.epoch, self.block, self.cursor = state["epoch"], state["block"], state["cursor"]
        self.dropped = state["dropped"]

    def _of_epoch(self, epoch: int) -> Pieces:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self.pieces(epoch)
        return self._epoch[1]


def shuffled(numbers: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return where a permutation of 0..count - 1, chosen by `seed`, takes each number, without listing the whole.

    A Feistel network permutes the next power of four; what falls outside is sent through again until it falls inside.
    """
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.default_rng(seed).integers(0, 1 << 64, _ROUNDS, dtype=np.uint64)
    found = numbers.astype(np.uint64)
    outside = np.arange(len(found))
    while len(outside):
        values = found[outside]
        left, right = values >> half, values & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right + key) & mask)
        found[outside] = (left << half) | right
        outside = outside[found[outside] >= count]
    return found.astype(np.int64)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Spread every input bit over all output bits (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
