import pytest

from ludus.optim.schedules import build, constant, cosine, linear, warmup
from ludus.optim.settings import ScheduleSettings


def test_warmup_moves_at_once_and_reaches_the_peak():
    assert [warmup(4)(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert warmup(0)(0) == 1


@pytest.mark.parametrize("shape", [linear, cosine])
def test_falling_starts_at_the_peak_and_ends_at_the_floor(shape):
    schedule = shape(start=10, until=20, floor=0.1)
    values = [schedule(step) for step in range(30)]
    assert values[:11] == [1.0] * 11
    assert values == sorted(values, reverse=True)
    assert values[15] == pytest.approx(0.55)
    assert values[20:] == pytest.approx([0.1] * 10)


def test_schedules_multiply():
    schedule = warmup(2) * linear(start=2, until=4) * constant()
    assert [schedule(step) for step in range(5)] == [0.5, 1, 1, 0.5, 0]


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 400])
@pytest.mark.parametrize("cooldown", [0, 0.5, 1])
def test_a_stage_never_wastes_an_update_and_never_exceeds_the_peak(shape: str, steps: int, cooldown: float):
    schedule = build(ScheduleSettings(shape=shape, cooldown=cooldown), steps)  # type: ignore[arg-type]
    values = [schedule(step) for step in range(steps)]
    assert min(values) > 0
    assert max(values) <= 1
    if cooldown == 0:
        assert values[-1] == 1


def test_the_cooldown_covers_its_share_of_the_steps():
    values = [build(ScheduleSettings(warmup=0.1, cooldown=0.5), 100)(step) for step in range(100)]
    assert values[9] == values[50] == 1
    assert values[8] < 1 > values[51]
    assert values[99] == pytest.approx(1 / 50)
