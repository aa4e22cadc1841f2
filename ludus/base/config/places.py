"""The shape of a schema: what kind of value may stand at each dotted path.

Pydantic knows the types; this module reads them into five kinds of place, so that merging, messages and help need not
look at annotations. A union of sections is told apart by the field `kind`, whose `Literal` names the member.
"""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from ludus.base.config.settings import Settings

TAG = "kind"


@dataclass(frozen=True)
class Section:
    """A nested `Settings`."""

    model: type[Settings]
    optional: bool = False


@dataclass(frozen=True)
class Choice:
    """One of several `Settings`, chosen by `kind`."""

    members: dict[str, type[Settings]]
    optional: bool = False


@dataclass(frozen=True)
class Mapping:
    """A mapping with free keys; it is one value, replaced as a whole unless a dotted override names one entry."""

    value: "Place"
    annotation: Any
    optional: bool = False


@dataclass(frozen=True)
class Sequence:
    """A list, tuple or set of places; replaced as a whole."""

    item: "Place"
    annotation: Any
    optional: bool = False


@dataclass(frozen=True)
class Leaf:
    """Anything pydantic validates as one value."""

    annotation: Any


Place: TypeAlias = Section | Choice | Mapping | Sequence | Leaf


def place_of(annotation: Any) -> Place:
    """Return the kind of place an annotation describes."""
    members, optional = union_members(annotation)
    if members and all(is_settings(member) for member in members):
        if len(members) == 1:
            return Section(members[0], optional)
        return Choice({tag: member for member in members for tag in tags_of(member)}, optional)
    if len(members) == 1:
        origin, arguments = get_origin(members[0]), get_args(members[0])
        if origin is dict and len(arguments) == 2:
            return Mapping(place_of(arguments[1]), members[0], optional)
        if origin in (list, set, frozenset) or (origin is tuple and arguments[-1:] == (Ellipsis,)):
            return Sequence(place_of(arguments[0]), members[0], optional)
    return Leaf(annotation)


def union_members(annotation: Any) -> tuple[list[Any], bool]:
    """Return the alternatives of an annotation without None, and whether None was among them."""
    annotation = bare(annotation)
    if get_origin(annotation) not in (Union, types.UnionType):
        return [annotation], False
    parts = [bare(part) for part in get_args(annotation)]
    nested = [union_members(part) for part in parts if part is not type(None)]
    members = [member for found, _ in nested for member in found]
    return members, type(None) in parts or any(optional for _, optional in nested)


def bare(annotation: Any) -> Any:
    """Strip `Annotated` and named aliases."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif hasattr(annotation, "__value__"):
            annotation = annotation.__value__
        else:
            return annotation


def is_settings(annotation: Any) -> bool:
    """Tell whether an annotation is a `Settings` class."""
    return isinstance(annotation, type) and issubclass(annotation, Settings)


def tags_of(model: type[Settings]) -> tuple[str, ...]:
    """Return the values of `kind` that name this member of a union; none for a plain section."""
    field = model.model_fields.get(TAG)
    if field is None or get_origin(bare(field.annotation)) is not Literal:
        return ()
    return tuple(str(value) for value in get_args(bare(field.annotation)))


def field_place(field: FieldInfo) -> Place:
    """Return the place of a field."""
    return place_of(field.annotation)


def sections_below(place: Place) -> list[tuple[str | None, type[Settings]]]:
    """Return the sections that may stand at a place, each with its `kind` (None for a plain section)."""
    if isinstance(place, Section):
        return [(None, place.model)]
    if isinstance(place, Choice):
        return list(place.members.items())
    return []


def paths(schema: type[Settings]) -> Iterator[str]:
    """Yield every dotted path a user may set, sections included, in declaration order, each once."""
    yield from dict.fromkeys(_paths(schema, ""))


def _paths(model: type[Settings], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for _, member in sections_below(field_place(field)):
            yield from _paths(member, f"{prefix}{name}.")
