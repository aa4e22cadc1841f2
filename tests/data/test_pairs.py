from itertools import islice

import numpy as np
import torch

from ludus.data.epochs import Epochs
from ludus.data.pairs import Pair, Pairs, stack


def pair(number: int) -> Pair:
    """Make a pair that shows its number, the rejected answer being longer."""
    chosen, rejected = np.full(3, number), np.full(3 + number % 4, 100 + number)
    return Pair((chosen, np.array([0, 1, 1.0])), (rejected, np.array([0, *[1.0] * (len(rejected) - 1)])))


def source(**changes) -> Pairs:
    pairs = [pair(number) for number in range(7)]
    reference = np.array([[number, 100 + number] for number in range(7)], dtype=np.float32)
    return Pairs(pairs, reference, **{"size": 3, "pad_token": 0, "seed": 1, **changes})


def test_chosen_answers_lie_above_rejected_ones():
    batch = stack([pair(1), pair(2)], pad_token=0)
    assert batch.tokens[:, 0].tolist() == [1, 2, 101, 102]
    assert batch.weight == 2
    assert batch.weights.sum(dim=1).tolist() == [2, 2, 3, 4]
    assert batch.documents is None


def test_the_reference_goes_with_its_pair():
    for batch in islice(source(), 9):
        assert torch.equal(batch.reference_logps, batch.tokens[:, 0].float())


def test_every_pair_comes_once_an_epoch_and_none_is_left_out():
    seen = [number for batch in islice(source(size=1), 14) for number in batch.tokens[:1, 0].tolist()]
    assert sorted(seen[:7]) == sorted(seen[7:]) == list(range(7))
    assert seen[:7] != seen[7:]


def test_the_size_of_batches_does_not_change_the_order():
    small = [batch.tokens[0, 0].item() for batch in islice(source(size=1), 12)]
    large = [number for batch in islice(source(size=4), 3) for number in batch.tokens[:4, 0].tolist()]
    assert small == large


def test_a_source_resumes_at_every_batch():
    stream = list(islice(source(), 12))
    running = source()
    for done in range(11):
        resumed = source()
        resumed.load_state_dict(running.state_dict())
        assert torch.equal(next(resumed).tokens, stream[done].tokens)
        assert resumed.tokens == running.tokens + sum(
            len(answer[0]) for number in stream[done].tokens[:3, 0].tolist() for answer in pair(number)
        )
        next(running)


def test_numbers_are_dealt_out_across_epochs():
    order = Epochs(5, seed=0)
    dealt = [number for _ in range(5) for number in order.take(3)]
    assert all(sorted(dealt[start : start + 5]) == list(range(5)) for start in (0, 5, 10))
    assert (order.epoch, order.cursor) == (3, 0)
