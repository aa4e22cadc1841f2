"""Where a model's layers lie in Hugging Face's layout, which is what an adapter's file calls them.

Several of our layers may lie in one place: GPT-2 keeps queries, keys and values in one matrix, so one adapter of its
file belongs to three layers here. Nothing here knows a family; the table of layouts does.
"""

from collections.abc import Iterable
from typing import NamedTuple

from ludus.model.architecture import Architecture
from ludus.model.families import layout_for


class Home(NamedTuple):
    """A module of the Hugging Face layout: its name, our modules in it in order, and whether its matrix is turned."""

    foreign: str
    sources: tuple[str, ...]
    transposed: bool


def homes(shape: Architecture, modules: Iterable[str]) -> list[Home]:
    """Return where modules with a weight lie; layers that share a place come whole, targeted or not."""
    weights = [f"{module}.weight" for module in modules]
    beside = [name.replace(part, "q_proj") for name in weights for part in ("k_proj", "v_proj")]
    places = layout_for(shape).places(dict.fromkeys([*weights, *beside]))
    found = {}
    for place in places:
        sources = tuple(source.removesuffix(".weight") for source in place.sources)
        if any(f"{source}.weight" in weights for source in sources):
            found[place.foreign] = Home(place.foreign.removesuffix(".weight"), sources, place.transposed)
    return list(found.values())
