from pathlib import Path

import pytest
import torch

from ludus.base.errors import CheckpointError
from ludus.learning import checkpoints
from ludus.learning.averaging import Average, average_checkpoints

KINDS = [{"decay": 0.9}, {"last_steps": 3}, {"last_steps": 2, "every": 2}]


def model(*, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    made = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    move(made, seed)
    return made.to(dtype)


def move(made: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Give a model new weights, and return a copy."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return weights(made)


def weights(made: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in made.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_first_update_is_the_average():
    made = model()
    for kind in ({"decay": 0.999}, {"last_steps": 5}):
        average = Average(made, **kind)
        assert average.values() == {}
        average.update()
        assert same(average.values(), weights(made))


def test_an_exponential_average_weighs_each_update_by_its_age():
    made, decay, steps = model(), 0.8, 12
    average, seen = Average(made, decay=decay), []
    for step in range(steps):
        seen.append(move(made, step))
        average.update()
    shares = torch.tensor([decay ** (steps - 1 - step) for step in range(steps)])
    shares /= shares.sum()
    for name, found in average.values().items():
        expected = sum(share * one[name] for share, one in zip(shares, seen, strict=True))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("every", "expected"), [(1, [5, 6, 7]), (2, [3, 5, 7]), (3, [2, 5])])
def test_a_uniform_average_is_that_of_the_last_looks(every: int, expected: list[int]):
    made = model()
    average, seen = Average(made, last_steps=3, every=every), []
    for step in range(8):
        seen.append(move(made, step))
        average.update()
    for name, found in average.values().items():
        torch.testing.assert_close(found, torch.stack([seen[step][name] for step in expected]).mean(0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swapped_in_and_back_the_weights_keep_every_bit(kind: dict, dtype: torch.dtype):
    made = model(dtype=dtype)
    average = Average(made, **kind)
    for step in range(5):
        move(made, step)
        average.update()
    own, places = weights(made), [parameter.data_ptr() for parameter in made.parameters()]
    expected = {name: value.to(dtype) for name, value in average.values().items()}
    with average.weights(made):
        assert same(weights(made), expected)
        assert not same(weights(made), own)
    assert same(weights(made), own)
    with pytest.raises(RuntimeError, match="as it happens"), average.weights(made):
        raise RuntimeError("as it happens")
    assert same(weights(made), own)
    assert places == [parameter.data_ptr() for parameter in made.parameters()]


def test_before_the_first_look_the_model_keeps_its_weights():
    made = model()
    average = Average(made, last_steps=2, every=10)
    average.update()
    own = weights(made)
    with average.weights(made):
        assert same(weights(made), own)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [1, 2, 3, 4])
def test_saved_and_loaded_it_goes_on_bit_for_bit(kind: dict, before: int, tmp_path: Path):
    made = model()
    average = Average(made, **kind)
    for step in range(before):
        move(made, step)
        average.update()
    path = checkpoints.save(tmp_path, before, {"average": average.state_dict()})
    again = Average(made, **kind)
    again.load_state_dict(checkpoints.load(path)[1]["average"])
    for step in range(before, before + 5):
        move(made, step)
        average.update()
        again.update()
        assert same(average.values(), again.values())


def test_frozen_weights_are_not_averaged_and_a_tied_one_once():
    made = model()
    made[0].requires_grad_(False)
    made[1].weight = torch.nn.Parameter(made[1].weight)
    made.again = made[1]
    average = Average(made, decay=0.5)
    average.update()
    assert average.values().keys() == {"1.weight", "1.bias"}


def test_a_slow_average_of_bfloat16_does_not_stand_still():
    made = torch.nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    average = Average(made, decay=0.999)
    for value in [1.0] * 200 + [1.01] * 200:
        torch.nn.init.constant_(made.weight, value)
        average.update()
    assert average.values()["weight"].dtype == torch.float32
    assert 1.004 < float(average.values()["weight"]) < 1.0078


def test_the_average_of_another_model_is_refused():
    saved = Average(torch.nn.Linear(2, 1), last_steps=1)
    saved.update()
    other = Average(torch.nn.Linear(2, 1, bias=False), decay=0.5)
    with pytest.raises(CheckpointError, match="2 weights, this stage averages 1 of 1"):
        other.load_state_dict(saved.state_dict())


@pytest.mark.parametrize("wrong", [{}, {"decay": 0.5, "last_steps": 2}, {"decay": 1.0}, {"last_steps": 0}])
def test_one_kind_of_average_is_asked_for(wrong: dict):
    with pytest.raises(ValueError, match="decay"):
        Average(model(), **wrong)


def test_checkpoints_on_disk_are_averaged_newest_first(tmp_path: Path):
    made, seen = model(), {}
    for step in (2, 4, 8, 16):
        seen[step] = move(made, step)
        checkpoints.save(tmp_path, step, {"model": weights(made)}, keep=9)
    found = average_checkpoints(tmp_path, last=3)
    for name, value in found.items():
        torch.testing.assert_close(value, torch.stack([seen[step][name] for step in (4, 8, 16)]).mean(0))
    assert same(average_checkpoints(tmp_path, last=1), seen[16])


def test_too_few_checkpoints_or_those_of_two_models_are_an_error(tmp_path: Path):
    made = model()
    checkpoints.save(tmp_path, 1, {"model": weights(made)})
    with pytest.raises(CheckpointError, match=r"holds 1 checkpoints, not 2; average fewer"):
        average_checkpoints(tmp_path, last=2)
    checkpoints.save(tmp_path, 2, {"model": weights(torch.nn.Linear(2, 2))})
    with pytest.raises(CheckpointError, match="average checkpoints of one model"):
        average_checkpoints(tmp_path, last=2)
