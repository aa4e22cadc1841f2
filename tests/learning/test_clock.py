"""The stopwatch of a step."""

from ludus.learning.clock import Clock


def test_laps_of_one_name_add_up_and_are_taken_once():
    times = iter([0.0, 1.0, 3.0, 3.5, 4.0])
    clock = Clock(lambda: next(times))
    for name in ("data", "gradient", "data"):
        clock.lap(name)
    assert clock.take() == {"data_seconds": 1.5, "gradient_seconds": 2.0}
    clock.lap("update")
    assert clock.take() == {"update_seconds": 0.5}
