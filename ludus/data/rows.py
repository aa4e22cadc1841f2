"""Packed rows as a batch: reading the tokens of many (start, stop) ranges into one table, without a copy between.

`ludus.data.batch.collate` does the same for examples that lie in memory one by one; a test compares the two.
"""

import numpy as np
import torch

from ludus.data.batch import Batch
from ludus.data.files import Tokens
from ludus.data.plan import Packed


def read(
    tokens: Tokens, weights: np.ndarray | None, rows: Packed, *, length: int, pad_token: int, numbered: bool = False
) -> Batch:
    """Return the rows as a batch, padded to `length`.

    Without `weights` every token of a piece but its first is predicted with weight 1. Where each row is one piece,
    documents are left out unless they are to be `numbered`, for those who ask how long each is.
    """
    ranges, counts, sizes = rows.ranges, rows.counts, rows.sizes
    starts, total = ranges[:, 0], int(sizes.sum())
    if total == len(rows) * length and len(ranges) == len(rows):
        return _full(tokens, weights, starts, length)
    row_of_piece = np.repeat(np.arange(len(rows)), counts)
    ends = np.cumsum(sizes)
    before = ends - sizes  # tokens in the pieces before each
    first_of_row = np.cumsum(counts) - counts
    places = row_of_piece * length + before - before[first_of_row][row_of_piece]  # where each piece begins in the table
    within = np.arange(total) - np.repeat(before, sizes)
    target, origin = within + np.repeat(places, sizes), within + np.repeat(starts, sizes)
    table = np.full(len(rows) * length, pad_token, np.int64)
    table[target] = tokens[origin]
    marks = np.zeros(len(rows) * length, np.float32)
    marks[target] = 1 if weights is None else weights[origin]
    marks[places] = 0  # a document's first token is predicted by nothing
    marks = np.ascontiguousarray(marks.reshape(-1, length)[:, 1:])
    documents = None
    if numbered or len(ranges) > len(rows):  # else causality alone keeps right padding out of sight
        numbers = np.full(len(rows) * length, -1, np.int64)
        numbers[target] = np.repeat(np.arange(len(ranges)) - first_of_row[row_of_piece], sizes)
        documents = torch.from_numpy(numbers.reshape(-1, length))
    return Batch(
        tokens=torch.from_numpy(table.reshape(-1, length)),
        weights=torch.from_numpy(marks),
        weight=float(np.count_nonzero(marks)),
        documents=documents,
    )


def _full(tokens: Tokens, weights: np.ndarray | None, starts: np.ndarray, length: int) -> Batch:
    """Read rows that are each filled by one piece: most rows of long documents."""
    places = starts[:, None] + np.arange(length)
    table = torch.from_numpy(tokens[places].astype(np.int64))
    if weights is None:
        return Batch(table, torch.ones(len(starts), length - 1), float(len(starts) * (length - 1)))
    marks = weights[places[:, 1:]].astype(np.float32)
    return Batch(table, torch.from_numpy(marks), float(np.count_nonzero(marks)))


def shorten(batch: Batch, context: int) -> Batch:
    """Cut rows of many predictions into rows of `context` predictions each, losing none.

    Neighbours share one token, as pieces of a document do, so the batch predicts the same tokens in more, shorter rows.
    """
    predictions = batch.weights.shape[1]
    if predictions == context:
        return batch
    parts = predictions // context

    def overlapping(table: torch.Tensor) -> torch.Tensor:
        return table.unfold(1, context + 1, context).reshape(-1, context + 1)

    return Batch(
        tokens=overlapping(batch.tokens),
        weights=batch.weights.reshape(-1, parts, context).reshape(-1, context),
        weight=batch.weight,
        documents=None if batch.documents is None else overlapping(batch.documents),
    )
