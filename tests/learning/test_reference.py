import numpy as np
import pytest
import torch

from ludus.data.pairs import Pair
from ludus.learning.reference import reference_logps


def pairs(count: int) -> list[Pair]:
    random = np.random.default_rng(0)

    def example() -> tuple[np.ndarray, np.ndarray]:
        tokens = random.integers(0, 61, random.integers(3, 20))
        weights = (np.arange(len(tokens)) >= len(tokens) // 2).astype(np.float32)
        return tokens, weights

    return [Pair(example(), example()) for _ in range(count)]


@pytest.mark.parametrize("size", [1, 3, 64])
def test_each_answer_has_the_log_probability_it_has_alone(tiny, size):
    model, made = tiny(dropout=0.5).train(), pairs(7)
    found = reference_logps(model, made, pad_token=0, size=size)
    assert found.shape == (7, 2)
    assert found.dtype == np.float32
    assert model.training  # as it was; the reference itself has no dropout
    model.eval()
    for row, pair in zip(found, made, strict=True):
        for value, (tokens, weights) in zip(row, pair, strict=True):
            with torch.no_grad():
                logps = model(torch.from_numpy(tokens)[None]).log_softmax(dim=-1)[0, :-1]
            chosen = logps.gather(1, torch.from_numpy(tokens[1:, None]))[:, 0]
            assert value == pytest.approx(float((chosen * torch.from_numpy(weights[1:])).sum()), rel=1e-4, abs=1e-4)


def test_it_has_no_gradient_and_is_the_same_twice(tiny):
    model, made = tiny(dropout=0.5).train(), pairs(5)
    first, second = (reference_logps(model, made, pad_token=0) for _ in range(2))
    assert np.array_equal(first, second)
    assert all(parameter.grad is None for parameter in model.parameters())
