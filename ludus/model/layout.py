"""What a layout of weights on disk is: which architectures it can hold, its `config.json`, and its names for weights.

A layout is data: a `Layout` in the table of `ludus.model.families`. Nothing here knows a family. A layout never holds
an architecture approximately: `misfits` names every switch that it has no place for.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ludus.base.errors import CheckpointError
from ludus.model.architecture import Architecture

Config = Mapping[str, Any]
SIZES = frozenset({"vocabulary", "layers", "width", "heads", "hidden", "context", "norm_epsilon", "tied"})


class Place(NamedTuple):
    """Where weights lie in a file: `sources` stacked along their first axis, turned over where `transposed`."""

    foreign: str
    sources: tuple[str, ...]
    transposed: bool = False


@dataclasses.dataclass(frozen=True)
class Layout:
    """One family's way to lie on disk.

    `free` are the fields of an architecture that `config.json` can say, `fixed` what the others must be where that is
    not the default; `also` returns further misfits. `written` makes the family's part of `config.json`, `read` takes
    it back, refusing what ludus cannot compute. `place` says where a weight lies; `ignored` matches buffers in files of
    other software that say nothing.
    """

    name: str
    model_type: str
    free: frozenset[str]
    fixed: Mapping[str, Any]
    written: Callable[[Architecture], dict[str, Any]]
    read: Callable[[Config, Path], Architecture]
    places: Callable[[Iterable[str]], list[Place]]
    also: Callable[[Architecture], list[str]] = lambda shape: []
    ignored: str = r"rotary_emb\.inv_freq$"
    prefix: str = "model."
    loads_elsewhere: bool = True

    def misfits(self, shape: Architecture) -> list[str]:
        """Name what this layout has no place for, as settings: `activation=relu2`."""
        held = self.free | without_effect(shape)
        found = []
        for field in dataclasses.fields(Architecture):
            value = getattr(shape, field.name)
            if field.name not in held and value != self.fixed.get(field.name, field.default):
                found.append(f"{field.name}={_shown(value)}")
        return found + self.also(shape)


def without_effect(shape: Architecture) -> frozenset[str]:
    """Name the fields that change no logit of this architecture."""
    found = {"dropout"}
    if shape.norm != "layer":
        found.add("norm_bias")
    if not shape.rotates:
        found |= {"rope_theta", "rope_scaling", "rotary_dims"}
    if shape.rotary_dims == shape.head_dim:
        found.add("rotary_dims")
    if not any(shape.windows):
        found.add("windows")
    return frozenset(found)


def refuse(config: Config, folder: Path, only: Mapping[str, tuple[Any, ...]], understood: str) -> None:
    """Raise CheckpointError unless each field of `only` that the config has holds one of the values given there."""
    asked = {key: config[key] for key, values in only.items() if config.get(key) is not None}
    asked = {key: value for key, value in asked.items() if value not in only[key]}
    if config.get("quantization_config"):
        asked["quantization_config"] = config["quantization_config"].get("quant_method", "some")
    if asked:
        wrong = ", ".join(f"{key}={value}" for key, value in asked.items())
        raise CheckpointError(f"{folder} asks for {wrong}; {understood}")


def sizes(config: Config, folder: Path, names: Mapping[str, str]) -> dict[str, int]:
    """Return the sizes that a config must say, by our names.

    Raises:
        CheckpointError: one is missing, or no whole number.
    """
    missing = [foreign for foreign in names.values() if not isinstance(config.get(foreign), int)]
    if missing:
        raise CheckpointError(f"{folder / 'config.json'} does not say its {', '.join(missing)}")
    return {ours: config[foreign] for ours, foreign in names.items()}


def _shown(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return getattr(value, "kind", "on")
    return value
