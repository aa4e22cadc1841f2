from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ludus.data.batch import Batch
from ludus.data.shards import TokenShards
from ludus.data.sources import Beside, Rows, in_order, pretraining

SIZES = [3, 50, 17, 1, 2, 30, 9, 26, 41, 5]
PAD = 999


def shards(sizes: list[int] = SIZES) -> TokenShards:
    """Make documents whose tokens are all different, so that each can be followed."""
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return TokenShards(np.arange(offsets[-1], dtype=np.uint16), offsets, 4 * int(offsets[-1]))


def source(**changes) -> Rows:
    return pretraining(shards(), **{"context": 12, "rows": 3, "pad_token": PAD, "seed": 5, **changes})


def learnt(batch: Batch) -> list[int]:
    """Return the tokens a batch predicts."""
    return batch.tokens[:, 1:][batch.weights != 0].tolist()


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.tokens, other.tokens) and torch.equal(one.weights, other.weights)


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_an_epoch_predicts_every_token_once(epoch: int):
    rows = source(rows=1)
    before = sum(len(rows.plan(number)) for number in range(epoch))
    found = [token for batch in islice(rows, before, before + len(rows.plan(epoch))) for token in learnt(batch)]
    firsts = set(shards().offsets[:-1].tolist())
    assert sorted(found) == [token for token in range(sum(SIZES)) if token not in firsts]


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=10).filter(any), context=st.integers(1, 20))
def test_whatever_the_documents_every_prediction_comes_once_an_epoch(sizes: list[int], context: int):
    rows = pretraining(shards(sizes), context=context, rows=1, pad_token=PAD, seed=0)
    for epoch in (0, 1):
        found = Counter(token for batch in islice(rows, len(rows.plan(epoch))) for token in learnt(batch))
        assert sorted(found.elements()) == sorted(found)
        assert len(found) == sum(max(size - 1, 0) for size in sizes)


def test_rows_left_at_the_end_of_an_epoch_open_the_next_batch():
    rows = source(rows=5)
    assert len(rows.plan(0)) % 5
    two_epochs = len(rows.plan(0)) + len(rows.plan(1))
    found = Counter(token for batch in islice(rows, -(-two_epochs // 5)) for token in learnt(batch))
    assert min(found.values()) >= 2
    assert len(found) == sum(SIZES) - len(SIZES)


def test_epochs_differ_in_order_and_in_cuts():
    rows = source()
    first, second = ({tuple(piece) for row in rows.plan(epoch) for piece in row} for epoch in (0, 1))
    assert first != second
    assert [len(row) for row in rows.plan(0)] != [len(row) for row in rows.plan(1)]


def test_the_seed_decides_the_order():
    assert same(next(source()), next(source()))
    assert not same(next(source()), next(source(seed=6)))


def test_a_source_resumes_at_every_batch():
    stream = list(islice(source(), 25))
    running = source()
    for done in range(24):
        resumed = source()
        resumed.load_state_dict(running.state_dict())
        assert all(same(one, other) for one, other in zip(islice(resumed, 2), stream[done : done + 2], strict=True))
        next(running)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_out_the_stream_of_one_process(ranks: int):
    alone = list(islice(source(), 4 * ranks))
    shared = [list(islice(source(rank=rank, ranks=ranks), 4)) for rank in range(ranks)]
    for number, batch in enumerate(alone):
        assert same(batch, shared[number % ranks][number // ranks])


def test_ranks_stand_at_the_same_place_and_can_change_their_number():
    pair = [source(rank=rank, ranks=2) for rank in range(2)]
    for rank in pair:
        list(islice(rank, 3))
    assert pair[0].state_dict() == pair[1].state_dict()
    alone = source()
    alone.load_state_dict(pair[0].state_dict())
    assert same(next(alone), list(islice(source(), 7))[6])


def test_the_size_of_batches_does_not_change_the_order_of_rows():
    small = [row for batch in islice(source(rows=1), 12) for row in batch.tokens.tolist()]
    large = [row for batch in islice(source(rows=4), 3) for row in batch.tokens.tolist()]
    assert small == large


def test_weights_travel_with_their_tokens():
    tokens = np.arange(20)
    weights = (tokens % 3 == 0).astype(np.float32)
    pieces = np.array([[0, 7], [7, 12], [12, 20]])
    rows = Rows(tokens, weights, lambda epoch: pieces, length=9, rows=3, pad_token=PAD, seed=0)
    assert sorted(learnt(next(rows))) == [3, 6, 9, 15, 18]


def test_rows_beside_each_other_come_from_both_sources_and_resume():
    alone = source(), source(seed=9, rows=2)
    both = Beside(source(), source(seed=9, rows=2), weight=0.25)
    for number in range(5):
        if number == 3:
            state, both = both.state_dict(), Beside(source(), source(seed=9, rows=2), weight=0.25)
            both.load_state_dict(state)
        batch, parts = next(both), [next(alone[0]), next(alone[1]).scaled(0.25)]
        assert batch.tokens.tolist() == [row for part in parts for row in part.tokens.tolist()]
        assert batch.weights.tolist() == [row for part in parts for row in part.weights.tolist()]
        assert batch.weight == sum(part.weight for part in parts)
    assert both.tokens == sum(each.tokens for each in alone)


def test_validation_reads_every_prediction_once_and_a_share_of_it_evenly():
    batches = list(in_order(shards(), context=12, rows=4, pad_token=PAD))
    found = [token for batch in batches for token in learnt(batch)]
    assert len(found) == len(set(found)) == shards().predictions
    few = list(in_order(shards(), context=12, rows=4, pad_token=PAD, limit=6))
    assert sum(len(batch.tokens) for batch in few) == 6
