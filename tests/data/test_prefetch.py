import threading
import time
from itertools import islice

import numpy as np
import pytest
import torch

from ludus.base.errors import DataError
from ludus.data.batch import Batch
from ludus.data.mixture import Domain, Mixture
from ludus.data.prefetch import Prefetch
from ludus.data.shards import TokenShards
from ludus.data.sources import Rows, pretraining

SIZES = [3, 50, 17, 1, 2, 30, 9, 26, 41, 5]
OFFSETS = np.concatenate([[0], np.cumsum(SIZES)])
SHARDS = TokenShards(np.arange(OFFSETS[-1], dtype=np.uint16), OFFSETS, 1)


def rows() -> Rows:
    return pretraining(SHARDS, context=12, rows=3, pad_token=999, seed=5)


def mixture() -> Mixture:
    domains = {"one": Domain(SHARDS, 2.0), "two": Domain(SHARDS, 1.0, epochs=1)}
    return Mixture(domains, context=12, rows=3, pad_token=999, seed=5, announce=lambda line: None)


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.tokens, other.tokens) and torch.equal(one.weights, other.weights)


def threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


@pytest.mark.law
@pytest.mark.parametrize("ahead", [1, 2, 7])
@pytest.mark.parametrize("make", [rows, mixture])
def test_the_stream_is_that_of_the_source(ahead: int, make):
    plain = make()
    with Prefetch(make(), ahead=ahead) as source:
        for _ in range(25):
            assert same(next(source), next(plain))
            assert source.tokens == plain.tokens
            assert source.state_dict() == plain.state_dict()
            assert source.account() == plain.account()


@pytest.mark.law
@pytest.mark.parametrize("make", [rows, mixture])
def test_a_state_is_that_of_the_batches_handed_out_so_a_killed_run_goes_on_exactly(make):
    stream = list(islice(make(), 24))
    with Prefetch(make(), ahead=3) as source:
        for done in range(20):
            with Prefetch(make(), ahead=3) as resumed:
                resumed.load_state_dict(source.state_dict())
                assert all(same(a, b) for a, b in zip(islice(resumed, 3), stream[done : done + 3], strict=True))
            next(source)
            time.sleep(0.001)  # let it read ahead


def test_a_state_can_be_taken_back_in_the_middle():
    with Prefetch(rows(), ahead=2) as source:
        state = source.state_dict()
        first = list(islice(source, 5))
        source.load_state_dict(state)
        assert all(same(a, b) for a, b in zip(islice(source, 5), first, strict=True))


def test_the_thread_is_there_while_it_is_needed_and_what_follows_is_not_lost():
    source = Prefetch(rows(), ahead=2)
    assert threads() == 0
    stream = list(islice(rows(), 6))
    for number in range(6):
        assert same(next(source), stream[number])
        assert threads() == 1
        if number % 2:
            source.close()
            assert threads() == 0


class Failing(Rows):
    def __next__(self) -> Batch:
        if self.batches == 3:
            raise DataError("the disk is gone")
        return super().__next__()


def test_an_error_is_raised_in_its_batchs_place_and_ends_the_thread():
    plain = rows()
    broken = Failing(SHARDS.tokens, None, plain.planned.pieces, length=13, rows=3, pad_token=0, seed=5)
    with Prefetch(broken, ahead=2) as source:
        assert len(list(islice(source, 3))) == 3
        for _ in range(2):
            with pytest.raises(DataError, match="the disk is gone"):
                next(source)
    assert threads() == 0


class Slow(Rows):
    def __next__(self) -> Batch:
        time.sleep(0.03)
        return super().__next__()


def test_waiting_is_measured_and_is_less_when_the_loop_is_busy():
    slow = Slow(SHARDS.tokens, None, rows().planned.pieces, length=13, rows=3, pad_token=0, seed=5)
    with Prefetch(slow, ahead=2) as source:
        next(source)
        assert source.metrics["waited_seconds"] == source.waited_seconds > 0.02
        time.sleep(0.15)
        next(source)
        assert source.waited_seconds < 0.02
        assert source.total_waited_seconds > 0.02
        assert source.metrics["padding"] >= 0


def test_batches_are_made_ready_in_the_thread():
    names = []

    def ready(batch: Batch) -> Batch:
        names.append(threading.current_thread().name)
        return batch.scaled(2.0)

    with Prefetch(rows(), ready=ready) as source:
        assert next(source).weight == 2 * next(rows()).weight
    assert set(names) == {"prefetch"}
