"""The machine at hand, measured: how fast it multiplies matrices, how fast it moves bytes, how much memory is free.

What lives here: a second of measuring, kept in the user's cache. What does not: timing a model. The one idea: a rate
that was measured here, today, with these libraries is worth more than one from a table.
"""

import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ludus.base.errors import LudusError
from ludus.base.files import read_json, sha256_json, write_json
from ludus.corpus.download import cache_folder
from ludus.planning.devices import Device

SIDE = 1024  # of the square matrices
MATMUL_SECONDS = 0.25
MOVED_BYTES = 1 << 26
CGROUP = Path("/sys/fs/cgroup")


def facts(threads: int) -> dict[str, Any]:
    """Return what tells this machine and its libraries from others."""
    import torch

    from ludus import __version__

    return {
        "processor": processor(),
        "threads": threads,
        "memory_bytes": total_memory(),
        "torch": torch.__version__,
        "ludus": __version__,
        "python": platform.python_version(),
    }


def cached(what: str, about: Any, make: Callable[[], Any], *, threads: int) -> tuple[Any, bool]:
    """Return what was measured on this machine before of the same thing, or measure and keep it; say which."""
    key = sha256_json({"machine": facts(threads), "about": about})[:16]
    file = cache_folder() / "planning" / f"{what}-{key}.json"
    with suppress(LudusError):
        if file.is_file():
            return read_json(file), True
    found = make()
    with suppress(LudusError):  # a cache that cannot be written is none
        write_json(file, found)
    return found, False


def this_machine(threads: int) -> tuple[Device, bool]:
    """Return this machine as a device, and whether its figures were remembered rather than measured now."""
    found, old = cached("machine", "rates", lambda: _measure(threads), threads=threads)
    return Device(
        key="this",
        name=f"this machine: {processor()}, {threads} threads",
        kind="cpu",
        rates=found["rates"],
        memory_bytes=available_memory(),
        bandwidth=found["bandwidth"],
        price=0.0,
    ), old


def _measure(threads: int) -> dict[str, Any]:
    import torch

    from ludus.planning.work import precision_of

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rates = {"float32": _matmul_rate(torch.float32)}
        if precision_of("auto") == "bfloat16":
            rates["bfloat16"] = _matmul_rate(torch.bfloat16)
        return {"rates": rates, "bandwidth": _bandwidth()}
    finally:
        torch.set_num_threads(before)


def _matmul_rate(dtype: Any) -> float:
    """Return the best rate of square matrix products, in operations a second."""
    import torch

    left, right = torch.ones(SIDE, SIDE, dtype=dtype), torch.ones(SIDE, SIDE, dtype=dtype)
    return 2.0 * SIDE**3 / _fastest(lambda: left @ right)


def _bandwidth() -> float:
    """Return the bytes a second that a copy reads and writes, with more than a processor's cache holds."""
    import torch

    source, target = torch.ones(MOVED_BYTES // 4), torch.zeros(MOVED_BYTES // 4)
    return 2.0 * MOVED_BYTES / _fastest(lambda: target.copy_(source))


def _fastest(act: Callable[[], Any]) -> float:
    """Return the seconds of the quickest of the repetitions that fit a moment, two at least."""
    found: list[float] = []
    until = time.perf_counter() + MATMUL_SECONDS
    while len(found) < 3 or time.perf_counter() < until:
        begun = time.perf_counter()
        act()
        found.append(time.perf_counter() - begun)
    return min(found[1:])


def processor() -> str:
    """Name the processor as the system does."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def total_memory() -> int:
    """Return the bytes of memory this machine has."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def available_memory(*, cgroup: Path = CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return the bytes this process may still use: what is free, within the limit of its container if it has one."""
    free = total_memory()
    with suppress(OSError):
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    with suppress(OSError, ValueError):
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text()) - _reclaimable(cgroup)
        free = min(free, limit - used)
    return max(0, free)


def _reclaimable(cgroup: Path) -> int:
    """Return the bytes of files that the container holds only because nobody needed the room."""
    with suppress(OSError, ValueError):
        for line in (cgroup / "memory.stat").read_text().splitlines():
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    return 0
