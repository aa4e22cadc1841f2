from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ludus.base.errors import CheckpointError, DataError
from ludus.data.packing import Cuts
from ludus.data.plan import Plan, shuffled

SIZES = [3, 50, 17, 1, 2, 30, 9, 26, 41, 5, 200, 77]


def offsets(sizes: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)])


def plan(*, size: int, sizes: list[int] = SIZES, length: int = 13, seed: int = 3) -> Plan:
    return Plan(lambda epoch: Cuts(offsets(sizes), length, epoch), length=length, seed=seed, size=size)


def predicted(rows) -> list[int]:
    return [place for start, stop in rows.ranges.tolist() for place in range(start + 1, stop)]


@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 300), seed=st.integers(0, 9))
def test_a_shuffle_takes_every_number_to_a_place_of_its_own(count: int, seed: int):
    assert sorted(shuffled(np.arange(count), count, seed).tolist()) == list(range(count))


def test_a_shuffle_depends_on_its_seed_and_not_on_what_else_is_asked():
    whole = shuffled(np.arange(5000), 5000, 1)
    assert shuffled(np.arange(70, 90), 5000, 1).tolist() == whole[70:90].tolist()
    assert (shuffled(np.arange(5000), 5000, 2) == whole).mean() < 0.01
    neighbours = np.abs(np.diff(whole)).mean()
    assert 0.8 < neighbours / (5000 / 3) < 1.2  # as far apart as two numbers drawn at random are


@pytest.mark.law
@pytest.mark.parametrize("size", [1, 5, 16, 1000])
@pytest.mark.parametrize("epoch", [0, 1])
def test_in_blocks_of_any_size_an_epoch_predicts_every_token_once(size: int, epoch: int):
    found = predicted(plan(size=size).rows(epoch))
    starts = offsets(SIZES)
    assert sorted(found) == [place for a, b in pairwise(starts.tolist()) for place in range(a + 1, b)]


def test_a_block_is_the_same_whatever_was_planned_before_it():
    one, other = plan(size=5), plan(size=5)
    for number in range(one.blocks(0)):
        one.at(0, number)
    assert np.array_equal(one.at(1, 3).rows.ranges, other.at(1, 3).rows.ranges)
    assert not np.array_equal(plan(size=5, seed=4).at(1, 3).rows.ranges[:9], other.at(1, 3).rows.ranges[:9])


def test_rows_are_taken_across_blocks_and_epochs_and_go_on_from_a_state():
    whole, running = plan(size=5), plan(size=5)
    rows = whole.rows(0).listed() + whole.rows(1).listed()
    for first in range(0, len(rows) - 4, 4):
        resumed = plan(size=5)
        resumed.load_state_dict(running.state_dict())
        wanted = [row.tolist() for row in rows[first : first + 4]]
        assert [row.tolist() for row in running.take(4).listed()] == wanted
        assert [row.tolist() for row in resumed.take(4).listed()] == wanted
    assert running.dropped == 0


def test_a_state_is_a_few_numbers_and_that_of_an_older_plan_is_refused():
    assert plan(size=5).state_dict() == {"epoch": 0, "block": 0, "cursor": 0, "dropped": 0}
    with pytest.raises(CheckpointError, match="start the stage again"):
        plan(size=5).load_state_dict({"epoch": 0, "cursor": 7})


def test_planning_a_block_touches_only_its_own_pieces():
    asked = []

    class Watched(Cuts):
        def __getitem__(self, numbers: np.ndarray, /) -> np.ndarray:
            asked.append(len(numbers))
            return super().__getitem__(numbers)

    huge = np.arange(0, 2_000_001, 20)  # 100,000 documents
    one = Plan(lambda epoch: Watched(huge, 13), length=13, seed=0, size=64)
    one.take(8)
    assert sum(asked) == 64


def test_nothing_to_read_is_said():
    with pytest.raises(DataError, match="no tokens to train on"):
        plan(size=5, sizes=[0, 0]).take(1)
