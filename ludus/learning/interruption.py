"""Ctrl-C and SIGTERM while training: finish the step, save, and leave; a second signal leaves at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """The run was asked to stop after step `step`; `saved` is the step of its newest checkpoint, 0 without one.

    `code` is the exit code a shell expects (128 + signal).
    """

    def __init__(self, number: int, step: int, saved: int) -> None:
        kept = "everything is saved" if saved == step else f"what is saved ends with step {saved}"
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; {kept}")
        self.code = 128 + number


class Asked:
    """Which signal has asked the run to stop, if any."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; let a second one through."""
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def listening() -> Iterator[Asked]:
    """Catch SIGINT and SIGTERM within the block, where this is the main thread; elsewhere nothing is caught."""
    asked = Asked()
    try:
        before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread may set handlers
        before = {}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
