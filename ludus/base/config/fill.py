"""Work out the derived fields, once everything the user said is known to be right.

The walk goes from the root down, in the order of declaration, so that a derivation may read its parents and earlier
sections. The result is validated again as a whole: a derivation has to obey the same ranges as a user.
"""

from collections.abc import Iterator
from functools import reduce
from typing import Any, TypeVar

from ludus.base.config.problems import raise_problems
from ludus.base.config.settings import Settings
from ludus.base.config.tree import as_node
from ludus.base.config.validate import validate

S = TypeVar("S", bound=Settings)


def fill(settings: S) -> S:
    """Return a copy in which every derived field has its value; for settings made in code rather than read."""
    return fill_with_reasons(settings)[0]


def fill_with_reasons(settings: S) -> tuple[S, dict[str, str]]:
    """Fill, and say for each filled dotted path from what it was derived."""
    copy = type(settings).model_validate(as_node(settings, "").plain())
    reasons: dict[str, str] = {}
    for path, section in walk(copy, ""):
        for name, (value, why) in section.derive(copy).items():
            *below, field = name.split(".")
            holder = reduce(getattr, below, section)
            if field not in type(holder).model_fields:
                raise TypeError(f"{type(section).__name__}.derive names `{name}`, which is not one of its fields")
            if getattr(holder, field) is None and value is not None:
                vars(holder)[field] = value  # frozen for everyone but this walk, on a copy nobody has seen
                reasons[path + name] = f"derived: {why}"
    tree = as_node(copy, "")
    filled, problems = validate(type(settings), with_reasons(tree, reasons))
    raise_problems(problems)
    assert filled is not None
    return filled, reasons


def with_reasons(tree: Any, reasons: dict[str, str], path: str = "") -> Any:
    """Return the tree with the reasons as origins, so that a derivation out of range says so."""
    value = tree.value
    if isinstance(value, dict):
        value = {key: with_reasons(node, reasons, f"{path}.{key}".lstrip(".")) for key, node in value.items()}
    elif isinstance(value, list):
        value = [with_reasons(node, reasons, f"{path}.{i}") for i, node in enumerate(value)]
    return type(tree)(value, reasons.get(path, "default"))


def walk(value: Any, path: str) -> Iterator[tuple[str, Settings]]:
    """Yield (prefix, section) for a section and all below it, each before its children are looked at."""
    if isinstance(value, Settings):
        yield path, value
        for name in type(value).model_fields:
            yield from walk(getattr(value, name), f"{path}{name}.")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from walk(item, f"{path}{key}.")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from walk(item, f"{path}{i}.")
