"""Rows of two sources in one batch, whatever their lengths."""

import numpy as np
import torch

from ludus.data.batch import collate, join


def test_shorter_rows_are_padded_beside_longer_ones():
    short, long = (
        collate([[(np.arange(length) + 3, np.ones(length, dtype=np.float32))]], pad_token=0) for length in (4, 7)
    )
    for first, second in ((short, long), (long, short)):
        both = join(first, second)
        assert both.tokens.shape == (2, 7)
        assert both.weights.shape == (2, 6)
        assert both.weight == short.weight + long.weight == both.weights.sum()
        row = 0 if first is short else 1
        assert both.tokens[row].tolist() == [3, 4, 5, 6, 0, 0, 0]
        assert both.documents is not None
        assert both.documents[row].tolist() == [0, 0, 0, 0, -1, -1, -1]
        assert torch.equal(both.documents[1 - row], torch.zeros(7, dtype=torch.int64))
