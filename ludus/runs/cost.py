"""What a stage costs: time on the wall, time on the processors, memory at its peak. Carried on over restarts."""

import resource
import sys
import time
from contextlib import suppress
from pathlib import Path


class Cost:
    """Counts from its making on, starting at what earlier attempts at the same stage have cost."""

    def __init__(self, wall_seconds: float = 0.0, cpu_seconds: float = 0.0, peak_memory_bytes: int = 0) -> None:
        with suppress(OSError):  # Linux forgets the peak of earlier stages in this process when told to
            Path("/proc/self/clear_refs").write_text("5")
        self._wall_zero = time.monotonic() - wall_seconds
        self._cpu_zero = _cpu_seconds() - cpu_seconds
        self._peak_before = peak_memory_bytes

    def so_far(self) -> tuple[float, float, int]:
        """Return seconds on the wall, seconds on the processors (with child processes that ended), and peak bytes."""
        wall, cpu = time.monotonic() - self._wall_zero, _cpu_seconds() - self._cpu_zero
        return round(wall, 3), round(cpu, 3), max(self._peak_before, _peak_memory_bytes())


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _peak_memory_bytes() -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
