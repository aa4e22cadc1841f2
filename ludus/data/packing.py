"""Fit pieces of documents into rows of fixed length, losing no token.

Pieces are computed when they are asked for, never listed: a corpus of ten billion tokens has ten million of them.
"""

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Pieces(Protocol):
    """Numbered (start, stop) ranges of tokens; an array of shape (pieces, 2) is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, numbers: np.ndarray, /) -> np.ndarray: ...


class Cuts:
    """Documents cut into pieces of at most `length` tokens.

    Neighbouring pieces of a document share one token, the last of one being the first of the next, so that every token
    but a document's first is predicted exactly once. A `phase` in [0, length - 1) shortens each document's first piece,
    so that cuts fall elsewhere in another epoch. An empty document has no pieces. Holds 9 bytes a document.
    """

    def __init__(self, offsets: np.ndarray, length: int, phase: int = 0) -> None:
        self.offsets, self.length, self.phase = offsets, length, phase
        sizes = np.diff(offsets)
        self._shortened = (sizes > length) & (phase > 0)
        rest = sizes - phase * self._shortened
        pieces = np.maximum(-(-(rest - 1) // (length - 1)), 1) * (sizes > 0) + self._shortened
        self._ends = np.cumsum(pieces)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, numbers: np.ndarray, /) -> np.ndarray:
        """Return the pieces of these numbers as (pieces, 2) starts and stops."""
        documents = np.searchsorted(self._ends, numbers, side="right")
        nth = numbers - np.where(documents > 0, self._ends[documents - 1], 0)
        start, stop = np.asarray(self.offsets[documents]), np.asarray(self.offsets[documents + 1])
        shortened = self._shortened[documents]
        head = shortened & (nth == 0)
        begin = start + np.where(head, 0, self.phase * shortened + (nth - shortened) * (self.length - 1))
        end = np.where(head, start + self.phase + 1, np.minimum(begin + self.length, stop))
        return np.stack([begin, end], axis=1)


def cut(offsets: np.ndarray, length: int, phase: int = 0) -> np.ndarray:
    """Cut documents into pieces, as `Cuts` does, and list them all: (pieces, 2) starts and stops."""
    cuts = Cuts(offsets, length, phase)
    return cuts[np.arange(len(cuts))]


def best_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Assign pieces to rows: longest first, each into the fullest row that still has room.

    Returns the piece numbers of each row. Every piece must be at most `capacity` long.
    """
    rows: list[list[int]] = [[piece] for piece in np.flatnonzero(lengths == capacity).tolist()]
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # row numbers by the room they have left
    occupied = 0  # bit r is set while some row has exactly r tokens of room
    order = np.argsort(-lengths, kind="stable")[len(rows) :]  # those that fill a row alone come first
    for piece, need in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = occupied >> need
        if fitting:
            room = need + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                occupied ^= 1 << room
            rows[row].append(piece)
        else:
            room, row = capacity, len(rows)
            rows.append([piece])
        left = room - need
        with_room[left].append(row)
        occupied |= 1 << left
    return rows
