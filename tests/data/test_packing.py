from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ludus.data.packing import best_fit, cut

lengths = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)


def offsets_of(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)])


def predicted(pieces: np.ndarray) -> list[int]:
    return sorted(place for start, stop in pieces.tolist() for place in range(start + 1, stop))


@settings(deadline=None)
@given(lengths=lengths, length=st.integers(2, 17), data=st.data())
def test_every_token_but_a_documents_first_is_predicted_exactly_once(lengths: list[int], length: int, data):
    phase = data.draw(st.integers(0, length - 2))
    offsets = offsets_of(lengths)
    pieces = cut(offsets, length, phase)
    wanted = [place for a, b in pairwise(offsets) for place in range(a + 1, b)]
    assert predicted(pieces) == wanted
    sizes = pieces[:, 1] - pieces[:, 0]
    assert sizes.min() >= 1
    assert sizes.max() <= length
    starts = set(offsets.tolist())
    assert all(a in starts or b - a > 1 for a, b in pieces.tolist())  # no piece that predicts nothing but a lone token


@given(lengths=lengths, length=st.integers(3, 17))
def test_no_piece_crosses_documents(lengths: list[int], length: int):
    offsets = offsets_of(lengths)
    for start, stop in cut(offsets, length, phase=1).tolist():
        assert not any(start < offset < stop for offset in offsets)


def test_a_phase_moves_the_cuts_of_long_documents_only():
    offsets = offsets_of([30, 5])
    cuts = {phase: cut(offsets, 11, phase).tolist() for phase in (0, 4)}
    assert cuts[0] == [[0, 11], [10, 21], [20, 30], [30, 35]]
    assert cuts[4] == [[0, 5], [4, 15], [14, 25], [24, 30], [30, 35]]


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 20), max_size=60))
def test_best_fit_places_every_piece_once_within_the_room(sizes: list[int]):
    array = np.array(sizes, dtype=np.int64)
    rows = best_fit(array, 20)
    assert sorted(piece for row in rows for piece in row) == list(range(len(sizes)))
    assert all(array[row].sum() <= 20 for row in rows)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 20), max_size=60))
def test_best_fit_does_what_the_plain_search_does(sizes: list[int]):
    room: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [left for left in room if left >= size]
        if fitting:
            room.remove(min(fitting))
        room.append((min(fitting) if fitting else 20) - size)
    rows = best_fit(np.array(sizes, dtype=np.int64), 20)
    assert sorted(20 - sum(sizes[piece] for piece in row) for row in rows) == sorted(room)


def test_best_fit_wastes_little_on_text():
    sizes = np.random.default_rng(0).integers(1, 257, 5_000)
    rows = best_fit(sizes, 256)
    assert sizes.sum() / (len(rows) * 256) > 0.98


@pytest.mark.parametrize("length", [2, 3, 100])
def test_documents_of_one_token_or_none_cut_without_harm(length: int):
    assert cut(offsets_of([1, 0, 2, 0]), length).tolist() == [[0, 1], [1, 3]]
