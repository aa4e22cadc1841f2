"""Where a model's layers lie in Hugging Face's layout, which is what an adapter's file calls them.

Several of our layers may lie in one place: GPT-2 keeps queries, keys and values in one matrix, so one adapter of its
file belongs to three layers here. Nothing here knows a family; the table of layouts does.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from ludus.model.architecture import Architecture
from ludus.model.families import layout_for
from ludus.model.layout import Place
from ludus.model.transformer import Transformer


class Home(NamedTuple):
    """A module of the Hugging Face layout: its name, our modules in it in order, and whether its matrix is turned."""

    foreign: str
    sources: tuple[str, ...]
    transposed: bool


def places(shape: Architecture, names: Iterable[str]) -> list[Place]:
    """Return where weights lie; what shares its place with others is there as soon as one of them is named."""
    names = list(names)
    beside = [name.replace(part, "q_proj") for name in names for part in ("k_proj", "v_proj")]
    found = layout_for(shape).places(dict.fromkeys([*names, *beside]))
    wanted = set(names)
    return [place for place in found if wanted.intersection(place.sources)]


def homes(shape: Architecture, modules: Iterable[str]) -> list[Home]:
    """Return where modules with a weight lie; layers that share a place come whole, targeted or not."""
    return [
        Home(_module(place.foreign), tuple(_module(source) for source in place.sources), place.transposed)
        for place in places(shape, [f"{module}.weight" for module in modules])
    ]


def weight_places(shape: Architecture) -> list[Place]:
    """Return where every weight of a model of this shape lies."""
    with torch.device("meta"):
        names = Transformer(shape).state_dict().keys()
    return places(shape, names)


def shortest(chosen: Sequence[str], known: Sequence[str]) -> list[str]:
    """Name the chosen modules by the last parts of their names where these mean no others, else in full."""
    chosen_names, found = set(chosen), []
    for last in dict.fromkeys(name.rpartition(".")[2] for name in chosen):
        meant = [name for name in known if name.rpartition(".")[2] == last]
        found += [last] if chosen_names.issuperset(meant) else [name for name in meant if name in chosen_names]
    return sorted(found)


def _module(weight: str) -> str:
    return weight.removesuffix(".weight")
