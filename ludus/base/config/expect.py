"""What a field expects, in words: `a whole number from 1 to 64`, `one of adamw, muon`. Shared by messages and help."""

import enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from ludus.base.config.places import Choice, Mapping, Section, Sequence, bare, place_of, union_members

SECTION = "a section with keys"
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


def expectation(annotation: Any, metadata: list[Any] | None = None) -> str:
    """Return what may stand in a field, its range included."""
    members, optional = union_members(annotation)
    metadata = [*(metadata or []), *getattr(annotation, "__metadata__", ())]
    words = [one_type(member) for member in members] + (["null"] if optional else [])
    return " or ".join(dict.fromkeys(words)) + range_words(metadata)


def expectation_of(field: FieldInfo) -> str:
    """Return what may stand in a field of a schema; that a derived one starts as None is no one's business."""
    members, _ = union_members(field.annotation)
    annotation = Union[tuple(members)] if field.default is None else field.annotation  # noqa: UP007
    return expectation(annotation, field.metadata)


def one_type(annotation: Any) -> str:
    """Return the words for one alternative."""
    annotation = bare(annotation)
    if annotation in WORDS:
        return WORDS[annotation]
    if get_origin(annotation) is Literal:
        return choices(get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return choices([member.value for member in annotation])
    match place_of(annotation):
        case Section() | Choice():
            return SECTION
        case Sequence(annotation=whole):
            inner = one_type(get_args(whole)[0])
            return (
                "a list of sections, such as [{…}, {…}]" if inner == SECTION else f"a list of {inner}, such as [a, b]"
            )
        case Mapping(annotation=whole):
            return f"names with {one_type(get_args(whole)[1])} each, such as {{a: …}}"
    if get_origin(annotation) is tuple:
        return "a list of " + ", ".join(one_type(part) for part in get_args(annotation))
    return getattr(annotation, "__name__", str(annotation))


def choices(values: Any) -> str:
    """Return the words for a closed set of values."""
    words = [str(value) for value in values]
    return f"one of {', '.join(words)}" if len(words) > 1 else words[0]


def range_words(metadata: list[Any]) -> str:
    """Return ` from 1 to 64`, ` above 0`, or nothing."""
    bounds: dict[str, Any] = {}
    flat = [part for whole in metadata for part in (whole.metadata if isinstance(whole, FieldInfo) else [whole])]
    for item in flat:
        for name in ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length", "pattern"):
            value = getattr(item, name, None)
            if value is not None:
                bounds[name] = value
    low, high = bounds.get("ge"), bounds.get("le")
    if low is not None and high is not None:
        words = [f"from {low} to {high}"]
    else:
        words = [f"{low} or more"] * (low is not None) + [f"{high} or less"] * (high is not None)
    words += [f"{name} {bounds[key]}" for key, name in LIMITS.items() if key in bounds]
    return ", ".join(words).join([" " if words[0].startswith("from") else ", ", ""]) if words else ""


LIMITS = {
    "gt": "above",
    "lt": "below",
    "multiple_of": "a multiple of",
    "min_length": "length at least",
    "max_length": "length at most",
    "pattern": "matching",
}
