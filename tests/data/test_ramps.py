from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from ludus.base.errors import ConfigError
from ludus.data.ramps import context_ramp, rows_ramp
from ludus.data.shards import TokenShards
from ludus.data.sources import Rows, pretraining

SIZES = [30, 50, 17, 1, 2, 30, 9, 26, 41, 5, 120]
STAGES = [(0.25, 3), (0.5, 5)]


def source(**changes) -> Rows:
    offsets = np.concatenate([[0], np.cumsum(SIZES)])
    shards = TokenShards(np.arange(offsets[-1], dtype=np.uint16), offsets, 1)
    return pretraining(shards, **{"context": 12, "rows": 2, "pad_token": 999, "seed": 5, **changes})


def rows_of(batches) -> list[list[int]]:
    return [row for batch in batches for row in batch.tokens.tolist()]


def test_a_stage_holds_from_its_share_of_the_batches_on():
    ramp = rows_ramp(2, STAGES, 20)
    assert [ramp(batch) for batch in (0, 4, 5, 9, 10, 19, 500)] == [2, 2, 3, 3, 5, 5, 5]
    with pytest.raises(ConfigError, match="in the order"):
        rows_ramp(2, STAGES[::-1], 20)


@pytest.mark.law
def test_more_rows_in_a_batch_are_the_next_rows_and_none_is_left_out():
    ramped = rows_of(islice(source(rows=rows_ramp(2, STAGES, 20)), 12))
    assert len(ramped) == 5 * 2 + 5 * 3 + 2 * 5
    assert ramped == rows_of(islice(source(rows=1), len(ramped)))


@pytest.mark.law
def test_shorter_rows_first_predict_the_same_tokens_with_as_many_in_a_batch():
    short = source(shortened=context_ramp(12, [(0.0, 3), (0.3, 6), (0.6, 12)], 20))
    for number, (batch, whole) in enumerate(zip(islice(short, 20), source(), strict=False)):
        assert batch.tokens.shape[1] - 1 == (3 if number < 6 else 6 if number < 12 else 12)
        assert batch.weights.numel() == whole.weights.numel()
        one, other = (Counter(b.tokens[:, 1:][b.weights != 0].tolist()) for b in (batch, whole))
        assert one == other
    assert short.account()["dropped"] == 0


@pytest.mark.law
def test_ramps_go_on_where_they_stood():
    def ramped() -> Rows:
        return source(rows=rows_ramp(2, STAGES, 20), shortened=context_ramp(12, [(0.0, 4), (0.4, 12)], 20))

    stream, running = list(islice(ramped(), 14)), ramped()
    for done in range(13):
        resumed = ramped()
        resumed.load_state_dict(running.state_dict())
        assert torch.equal(next(resumed).tokens, stream[done].tokens)
        next(running)


def test_a_context_that_leaves_a_rest_is_refused_and_a_near_one_named():
    with pytest.raises(ConfigError, match=r"100 does not divide data.context=512 evenly.*128 does"):
        context_ramp(512, [(0.0, 100)], 10)
