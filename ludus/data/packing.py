"""Fit pieces of documents into rows of fixed length, losing no token."""

import numpy as np


def cut(offsets: np.ndarray, length: int, phase: int = 0) -> np.ndarray:
    """Cut documents into pieces of at most `length` tokens, as (pieces, 2) starts and stops.

    Neighbouring pieces of a document share one token, the last of one being the first of the next, so that every token
    but a document's first is predicted exactly once. A `phase` in [0, length - 1) shortens each document's first piece,
    so that cuts fall elsewhere in another epoch. An empty document has no pieces.
    """
    stride = length - 1
    pieces = []
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        first = start
        if phase and stop - start > length:
            pieces.append((start, start + phase + 1))
            first = start + phase
        begins = range(first, max(stop - 1, first + 1), stride) if stop > start else ()
        pieces.extend((begin, min(begin + length, stop)) for begin in begins)
    return np.array(pieces, dtype=np.int64).reshape(-1, 2)


def best_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Assign pieces to rows: longest first, each into the fullest row that still has room.

    Returns the piece numbers of each row. Every piece must be at most `capacity` long.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # row numbers by the room they have left
    occupied = 0  # bit r is set while some row has exactly r tokens of room
    for piece in np.argsort(-lengths, kind="stable").tolist():
        need = int(lengths[piece])
        fitting = occupied >> need
        if fitting:
            room = need + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                occupied ^= 1 << room
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(piece)
        left = room - need
        with_room[left].append(row)
        occupied |= 1 << left
    return rows
