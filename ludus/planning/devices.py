"""Devices by name: how fast they multiply, how much they hold, what an hour of them costs.

What lives here: the table `devices.yaml` as values, and what a device is expected to reach. What does not: measuring
this machine. The one idea: a figure that ages (a price) or that is somebody's claim (a peak) is data with a date, and
can be replaced on the command line.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from ludus.base.config.yaml import read_yaml
from ludus.base.errors import ConfigError, nearest

THIS = "this"
# Share of the peak reached, by parameters: small models are held up by starting kernels and by moving bytes.
UTILISATION = {
    "huge": ((1e6, 0.005), (1e7, 0.04), (1e8, 0.27), (1e9, 0.40), (1e10, 0.45)),
    "large": ((1e6, 0.01), (1e7, 0.09), (1e8, 0.35), (1e9, 0.45), (1e10, 0.50)),
    "narrow": ((1e6, 0.03), (1e7, 0.15), (1e8, 0.35), (1e9, 0.40), (1e10, 0.40)),
    "processor": ((1e5, 0.08), (1e6, 0.2), (1e7, 0.35), (1e8, 0.5), (1e10, 0.55)),
}


@dataclass(frozen=True)
class Device:
    """One device. `rates` are floating-point operations a second by precision; `price` is dollars an hour."""

    key: str
    name: str
    kind: str
    rates: dict[str, float] = field(default_factory=dict)
    memory_bytes: int = 0
    bandwidth: float = 0.0
    price: float = 0.0
    utilisation: str = "processor"

    @property
    def native_bfloat16(self) -> bool:
        """Tell whether it multiplies bfloat16 natively."""
        return "bfloat16" in self.rates

    def rate(self, precision: str) -> float:
        """Return operations a second in a precision; in float32 where the device has no faster way."""
        return self.rates.get(precision) or self.rates["float32"]

    def reached(self, parameters: int) -> float:
        """Return the share of the peak that training a model of that size is expected to reach."""
        return between(UTILISATION[self.utilisation], parameters)

    def priced(self, price: float | None) -> "Device":
        """Return the device at another price, if one is given."""
        return self if price is None else dataclasses.replace(self, price=price)


def between(points: Sequence[tuple[float, float]], place: float) -> float:
    """Return the value at a place, on straight lines over the logarithm of the places; flat beyond the ends."""
    place = min(max(place, points[0][0]), points[-1][0])
    for (left, low), (right, high) in pairwise(points):
        if place <= right:
            return low + (high - low) * math.log(place / left) / math.log(right / left)
    return points[-1][1]


@lru_cache
def table() -> dict[str, Device]:
    """Return every device of the table by its key."""
    file = Path(__file__).with_name("devices.yaml")
    content = _plain(read_yaml(file.read_text(encoding="utf-8"), lambda line: f"devices.yaml:{line}"))
    return {
        key: Device(
            key=key,
            name=facts["name"],
            kind=facts["kind"],
            rates={name: value * 1e12 for name, value in facts["tflops"].items()},
            memory_bytes=round(facts["gigabytes"] * 1e9),
            bandwidth=facts["gigabytes_per_second"] * 1e9,
            price=float(facts["price"]),
            utilisation=facts["utilisation"],
        )
        for key, facts in content.items()
    }


def find(name: str) -> Device:
    """Return a device of the table. Raises ConfigError, with the nearest, for a name it does not hold."""
    key = name.lower().replace(" ", "").replace("_", "-")
    if key in table():
        return table()[key]
    near = nearest(key, [THIS, *table()])
    said = f"did you mean {near}? " if near else ""
    raise ConfigError(f"device={name}: unknown; {said}known are {THIS} (this machine), {', '.join(table())}")


def _plain(node: Any) -> Any:
    """Return a node of a recipe as plain values."""
    value = node.value
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
