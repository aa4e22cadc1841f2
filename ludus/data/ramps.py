"""Ramps: what changes by the number of the batch, in stages, as batches grow or rows lengthen while a run goes on.

A ramp is a function of the batch number alone, so it has no state, and a resumed run finds it where it was. Rows come
in the same order whatever the ramp: more rows in a batch are the next rows earlier, shorter rows are the
same rows, cut.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Generic, TypeVar

from ludus.base.errors import ConfigError

Value = TypeVar("Value")


class Stages(Generic[Value]):
    """A value by batch number: each stage is (share of all batches from which it holds, value)."""

    def __init__(self, first: Value, stages: Sequence[tuple[float, Value]], batches: int) -> None:
        self.values = [first, *(value for _, value in stages)]
        self.begins = [round(share * batches) for share, _ in stages]
        if self.begins != sorted(self.begins):
            raise ConfigError("stages must be in the order of `start`, the earliest first; sort them")

    def __call__(self, batch: int) -> Value:
        """Return the value that holds for a batch; batches count from 0, the last stage never ends."""
        return self.values[bisect_right(self.begins, batch)]


def rows_ramp(rows: int, stages: Sequence[tuple[float, int]], batches: int) -> Stages[int]:
    """Return rows a batch by its number: those of the stages, which replace `rows` from their share on."""
    return Stages(rows, stages, batches)


def context_ramp(context: int, stages: Sequence[tuple[float, int]], batches: int) -> Stages[int]:
    """Return predictions a row by batch number: `context` divided, then whole.

    Raises:
        ConfigError: a stage's context does not divide the whole, so that rows could not be cut without a rest.
    """
    for _, value in stages:
        if value < 1 or context % value:
            fitting = [part for part in range(1, context + 1) if context % part == 0]
            near = min(fitting, key=lambda part: abs(part - value))
            raise ConfigError(
                f"data.context_ramp: {value} does not divide data.context={context} evenly, and rows are cut without "
                f"a rest; {near} does"
            )
    return Stages(context, stages, batches)
