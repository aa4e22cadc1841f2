"""Where the time of a step goes: a stopwatch with laps, cheap enough to run always."""

import time
from collections.abc import Callable


class Clock:
    """Counts seconds by the name of what was done in them.

    On a GPU work is only queued when a line of Python returns: what the gradient took shows under whatever waits first.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._last = now, now()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Count the time since the last lap under `name`."""
        now = self._now()
        self._laps[name] = self._laps.get(name, 0.0) + now - self._last
        self._last = now

    def take(self) -> dict[str, float]:
        """Return the seconds by name since the last taking, as `NAME_seconds`."""
        laps, self._laps = self._laps, {}
        return {f"{name}_seconds": seconds for name, seconds in laps.items()}
