import pytest
import torch

from ludus.base.config import fill
from ludus.optim.schedules import build, constant, cosine, inverse_sqrt, linear, root, warmup
from ludus.optim.settings import ScheduleSettings

SHAPES = ["linear", "cosine", "wsd", "inverse_sqrt", "constant"]


def values(steps: int, **settings) -> list[float]:
    schedule = build(ScheduleSettings(**settings), steps)
    return [schedule(step) for step in range(steps)]


def test_warmup_moves_at_once_and_reaches_the_peak():
    assert [warmup(4)(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert warmup(0)(0) == 1


@pytest.mark.parametrize(("shape", "half"), [(linear, 0.55), (cosine, 0.55), (root, 1 - 0.9 * 0.5**0.5)])
def test_falling_starts_at_the_peak_and_ends_at_the_floor(shape, half: float):
    schedule = shape(start=10, until=20, floor=0.1)
    values = [schedule(step) for step in range(30)]
    assert values[:11] == [1.0] * 11
    assert values == sorted(values, reverse=True)
    assert values[15] == pytest.approx(half)
    assert values[20:] == pytest.approx([0.1] * 10)


def test_schedules_multiply():
    schedule = warmup(2) * linear(start=2, until=4) * constant()
    assert [schedule(step) for step in range(5)] == [0.5, 1, 1, 0.5, 0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 400])
@pytest.mark.parametrize("cooldown", [None, 0, 0.5, 1])
def test_a_stage_never_wastes_an_update_and_never_exceeds_the_peak(shape: str, steps: int, cooldown: float | None):
    found = values(steps, shape=shape, cooldown=cooldown)
    assert min(found) > 0
    assert max(found) <= 1
    if cooldown == 0 and shape != "inverse_sqrt":
        assert found[-1] == 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_what_rises_rises_and_what_falls_falls_to_the_floor(shape: str, floor: float):
    found = values(200, shape=shape, warmup=0.1, cooldown=0.5, floor=floor)
    assert found[:20] == sorted(found[:20])
    assert found[19] == 1
    assert found[19:] == sorted(found[19:], reverse=True)
    assert min(found[20:]) >= floor
    assert found[-1] < floor + 0.1


@pytest.mark.parametrize("shape", ["linear", "constant"])
def test_the_cooldown_covers_its_share_of_the_steps(shape: str):
    found = values(100, shape=shape, warmup=0.1, cooldown=0.5)
    assert found[9] == found[50] == 1
    assert found[8] < 1 > found[51]
    assert found[99] == pytest.approx(1 / 50)


def test_steps_stand_in_for_shares():
    assert values(100, warmup=0.5, warmup_steps=10, cooldown=0.1, cooldown_steps=50) == values(
        100, warmup=0.1, cooldown=0.5
    )
    assert values(100, warmup_steps=0, cooldown_steps=0) == [1.0] * 100


def test_the_peak_is_reached_before_the_fall_begins():
    assert values(10, warmup=0.5, cooldown=1)[4] == 1
    assert values(10, warmup=0.5, cooldown=1)[5:] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_cooldown_that_a_shape_brings_is_the_one_that_is_shown(shape):
    filled = fill(ScheduleSettings(shape=shape))
    assert filled.cooldown is not None
    assert values(60, shape=shape, cooldown=filled.cooldown) == values(60, shape=shape)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("get_linear_schedule_with_warmup", {"shape": "linear", "cooldown": 1}, {"num_training_steps": 100}),
        ("get_cosine_schedule_with_warmup", {"shape": "cosine", "cooldown": 1}, {"num_training_steps": 100}),
        (
            "get_cosine_with_min_lr_schedule_with_warmup",
            {"shape": "cosine", "cooldown": 1, "floor": 0.1},
            {"num_training_steps": 100, "min_lr_rate": 0.1},
        ),
        (
            "get_wsd_schedule",
            {"shape": "linear", "cooldown_steps": 30},
            {"num_training_steps": 100, "num_decay_steps": 30, "decay_type": "linear"},
        ),
        (
            "get_wsd_schedule",
            {"shape": "wsd", "cooldown_steps": 30},
            {"num_training_steps": 100, "num_decay_steps": 30, "decay_type": "1-sqrt"},
        ),
        ("get_inverse_sqrt_schedule", {"shape": "inverse_sqrt"}, {}),
        ("get_constant_schedule_with_warmup", {"shape": "constant"}, {}),
    ],
)
def test_after_the_warmup_the_shapes_are_those_of_transformers(name: str, ours: dict, theirs: dict):
    optimization = pytest.importorskip("transformers.optimization")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    lambdas = getattr(optimization, name)(optimizer, num_warmup_steps=10, **theirs).lr_lambdas
    # Theirs wastes the first update on a rate of zero, ours moves at once; both are at the peak from step 10 on.
    assert values(100, warmup_steps=10, **ours)[10:] == pytest.approx([lambdas[0](step) for step in range(10, 100)])


def test_one_over_the_root_falls_by_half_in_four_times_the_steps():
    assert [inverse_sqrt(100)(step) for step in (0, 100, 400, 1600)] == pytest.approx([1, 1, 0.5, 0.25])
