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


def linear(*, start: int = 0, until: int, floor: float = 0.0) -> Schedule:
    """Fall in a line from 1 at `start` to `floor` at `until`."""
    return Schedule(lambda step: 1 - (1 - floor) * _progress(step, start, until))


def cosine(*, start: int = 0, until: int, floor: float = 0.0) -> Schedule:
    """Fall in half a cosine from 1 at `start` to `floor` at `until` (SGDR, arXiv 1608.03983 eq. 5)."""
    return Schedule(lambda step: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * _progress(step, start, until))))


def root(*, start: int = 0, until: int, floor: float = 0.0) -> Schedule:
    """Fall as 1 - sqrt from 1 at `start` to `floor` at `until`: the cooldown of WSD (arXiv 2405.18392)."""
    return Schedule(lambda step: 1 - (1 - floor) * math.sqrt(_progress(step, start, until)))


def inverse_sqrt(steps: int) -> Schedule:
    """Fall with one over the root of the step, from 1 at `steps` (arXiv 1706.03762 eq. 3); multiply by a warm-up."""
    return Schedule(lambda step: math.sqrt(max(1, steps) / max(1, steps, step)))


def build(settings: ScheduleSettings, steps: int) -> Schedule:
    """Compose the schedule of a stage of `steps` updates; what falls begins at the end of the warm-up, or later."""
    rising = settings.warmup_steps if settings.warmup_steps is not None else round(steps * settings.warmup)
    share = settings.derive(None)["cooldown"][0] if settings.cooldown is None else settings.cooldown
    length = settings.cooldown_steps if settings.cooldown_steps is not None else round(steps * share)
    start = max(min(rising, steps), steps - length)
    fall = {"cosine": cosine, "wsd": root}.get(settings.shape, linear)
    falling = fall(start=start, until=steps, floor=settings.floor) if start < steps else constant()
    if settings.shape == "inverse_sqrt":
        both = falling * inverse_sqrt(rising)
        falling = Schedule(lambda step: max(settings.floor, both(step)))
    return warmup(rising) * falling


def _progress(step: int, start: int, until: int) -> float:
    return min(1.0, max(0.0, (step - start) / (until - start))) if until > start else float(step >= until)
