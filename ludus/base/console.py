"""What a user sees while work goes on: plain lines, and progress that suits where it is shown.

On a terminal progress is a bar with rate and time left, drawn by rich once the work has lasted a moment; in a pipe it
is a plain line now and then. Quick work shows nothing. Progress goes to standard error, results to standard output.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

Item = TypeVar("Item")

SHOWN_AFTER_SECONDS = 1.0
FIRST_LINE_SECONDS = 5.0
LINE_EVERY_SECONDS = 10.0

# Tabs and ends of lines stay; escape, bell, carriage return and the 8-bit controls would move the cursor or worse.
PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}
PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)

_hushed = 0


def say(text: str = "") -> None:
    """Print one plain line to standard output, at once."""
    print(text, flush=True)


def clean(text: str) -> str:
    """Return text whose control characters are pictures of themselves, so that it cannot command a terminal."""
    return text.translate(PICTURES)


def in_colour() -> bool:
    """Tell whether a person sees what is said, on a terminal with colours."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress (not `say`) inside the block; `LUDUS_QUIET=1` does so for a whole process."""
    global _hushed
    _hushed += 1
    try:
        yield
    finally:
        _hushed -= 1


def is_quiet() -> bool:
    """Tell whether progress is silenced."""
    return _hushed > 0 or os.environ.get("LUDUS_QUIET", "") not in ("", "0")


def track(items: Iterable[Item], label: str, total: int | None = None, unit: str = "item") -> Iterator[Item]:
    """Yield the items and show how far it is; `total` is their number where `len` cannot tell."""
    if total is None:
        total = len(items) if hasattr(items, "__len__") else None  # type: ignore[arg-type]
    with Meter(label, total, unit) as meter:
        for done, item in enumerate(items, 1):
            yield item
            meter.update(done)


class Meter:
    """Progress of one piece of work. `update(done, loss="2.31")` as often as you like; `close` when it is over."""

    def __init__(
        self,
        label: str,
        total: int | None = None,
        unit: str = "step",
        *,
        start: int = 0,
        clock: Callable[[], float] = time.monotonic,
        stream: TextIO | None = None,
    ) -> None:
        """`start` is what was done before (a resumed run), so that the rate is of this process alone."""
        self.label, self.total, self.unit = label, total, unit
        self.start = self.done = start
        self.facts: dict[str, Any] = {}
        self._clock, self._stream = clock, stream or sys.stderr
        self._began = self._last_line = clock()
        self._bar: Any = None
        self._lines = 0
        self._silent = is_quiet()
        self._terminal = self._stream.isatty()

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *failure: object) -> None:
        self.close(finished=failure[0] is None)

    def update(self, done: int, **facts: Any) -> None:
        """Say that `done` of the total are done; facts are shown beside it."""
        self.done = done
        self.facts.update(facts)
        if self._silent:
            return
        now = self._clock()
        if self._terminal:
            if self._bar is not None or now - self._began >= SHOWN_AFTER_SECONDS:
                self._draw()
        elif now - self._last_line >= (LINE_EVERY_SECONDS if self._lines else FIRST_LINE_SECONDS):
            self._line(now)

    def close(self, finished: bool = True) -> None:
        """Take the bar away, or end the plain lines with a last one, if any were shown."""
        if self._bar is not None:
            self._draw()
            self._bar.stop()
            self._bar = None
        elif self._lines and finished and not self._silent:
            self._line(self._clock())
        self._silent = True

    def _line(self, now: float) -> None:
        self._last_line, self._lines = now, self._lines + 1
        self._stream.write(plain_line(self, now - self._began) + "\n")
        self._stream.flush()

    def _draw(self) -> None:
        if self._bar is None:
            self._bar = start_bar(self, self._stream)
        text = facts_text(self.facts, rate_text(self, self._clock() - self._began))
        self._bar.update(self._bar.task_ids[0], completed=self.done, facts=text)


def start_bar(meter: Meter, stream: TextIO) -> Any:
    """Return a running rich progress bar; rich is imported only here, when work turns out to be long."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    time_column = TimeElapsedColumn() if meter.total is None else TimeRemainingColumn()
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), time_column]
    facts = TextColumn("{task.fields[facts]}", markup=False)
    # With standard output in a file, what is printed belongs there, not above the bar.
    screen, above = Console(file=stream, highlight=False), sys.stdout.isatty()
    bar = Progress(*columns, facts, console=screen, refresh_per_second=4, redirect_stdout=above)
    bar.add_task(escape(meter.label), total=meter.total, completed=meter.done, facts="")
    bar.start()
    return bar


def plain_line(meter: Meter, elapsed: float) -> str:
    """Return `pretrain: 120/400 steps, 30 %, 4.1 steps/s, 1:08 left, loss 2.31`."""
    of_total = "" if meter.total is None else f"/{meter.total:,}"
    parts = [f"{meter.done:,}{of_total} {plural(meter.unit)}"]
    if meter.total:
        parts.append(f"{100 * meter.done / meter.total:.0f} %")
    parts.append(rate_text(meter, elapsed))
    left = seconds_left(meter, elapsed)
    parts.append("" if left is None else f"{duration(left)} left")
    return f"{meter.label}: " + ", ".join(part for part in [*parts, facts_text(meter.facts)] if part)


def rate_text(meter: Meter, elapsed: float) -> str:
    """Return `4.1 steps/s`, or nothing before there is a rate."""
    rate = (meter.done - meter.start) / elapsed if elapsed > 0 else 0.0
    if rate <= 0:
        return ""
    digits = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    return f"{digits} {plural(meter.unit)}/s"


def seconds_left(meter: Meter, elapsed: float) -> float | None:
    """Return the seconds left at the rate so far, None when it cannot be told."""
    done = meter.done - meter.start
    if not meter.total or done <= 0 or meter.done >= meter.total:
        return None
    return elapsed / done * (meter.total - meter.done)


def duration(seconds: float) -> str:
    """Return seconds as `12 s`, `1:08` or `2:03:04`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def facts_text(facts: Mapping[str, Any], *first: str) -> str:
    """Return facts as `loss 2.31, accuracy 0.5`, after whatever comes first; floats have four digits."""
    words = [
        f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in facts.items()
    ]
    return ", ".join([part for part in first if part] + words)


def plural(unit: str) -> str:
    """Return the plural of a unit, leaving one that ends in s alone."""
    return unit if unit.endswith("s") else f"{unit}s"
