"""A schedule is a function of the step: `warmup(100) * cooldown(5_000, share=0.5)`. Composable and plottable.

Values are factors of the peak rate, in [0, 1]. Step 0 is the first update.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ludus.optim.settings import ScheduleSettings


@dataclass(frozen=True)
class Schedule:
    """A factor for each step; `*` multiplies two schedules."""

    factor: Callable[[int], float]

    def __call__(self, step: int) -> float:
        """Return the factor of the peak rate for the update after `step` updates."""
        return self.factor(step)

    def __mul__(self, other: "Schedule") -> "Schedule":
        return Schedule(lambda step: self(step) * other(step))


def constant() -> Schedule:
    """Stay at the peak."""
    return Schedule(lambda step: 1.0)


def warmup(steps: int) -> Schedule:
    """Rise linearly and reach the peak at update number `steps`; the first update already moves."""
    return Schedule(lambda step: min(1.0, (step + 1) / steps) if steps > 0 else 1.0)


def linear(*, start: int, until: int, floor: float = 0.0) -> Schedule:
    """Fall in a line from 1 at `start` to `floor` at `until`."""
    return Schedule(lambda step: 1 - (1 - floor) * _progress(step, start, until))


def cosine(*, start: int = 0, until: int, floor: float = 0.0) -> Schedule:
    """Fall in half a cosine from 1 at `start` to `floor` at `until` (SGDR, arXiv 1608.03983 eq. 5)."""
    return Schedule(lambda step: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * _progress(step, start, until))))


def build(settings: ScheduleSettings, steps: int) -> Schedule:
    """Compose the schedule of a stage of `steps` updates."""
    start = steps - round(steps * settings.cooldown)
    falling = {"linear": linear, "cosine": cosine}[settings.shape]
    return warmup(round(steps * settings.warmup)) * falling(start=start, until=steps, floor=settings.floor)


def _progress(step: int, start: int, until: int) -> float:
    return min(1.0, max(0.0, (step - start) / (until - start))) if until > start else float(step >= until)
