"""The help text of a schema: every field with its type, range, unit, default and doc.

There is one block for each section and each member of a union. Defaults are those of a run with nothing set, so a
derived field shows the value it would get and from what.
"""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ludus.base.config.expect import expectation_of
from ludus.base.config.fill import fill_with_reasons
from ludus.base.config.merge import Merge
from ludus.base.config.places import TAG, Choice, Mapping, Place, field_place, sections_below
from ludus.base.config.places import Sequence as Collection
from ludus.base.config.problems import shown, written
from ludus.base.config.settings import Settings
from ludus.base.config.tree import Node, along
from ludus.base.config.validate import validate
from ludus.base.errors import ConfigError

WIDTH = 100
INDENT = 6
COLUMN = 44


def describe(schema: type[Settings], sections: Sequence[str] | None = None) -> str:
    """Return the help for some sections of a schema, or for all of them."""
    names = [name for name in schema.model_fields if sections is None or name in sections]
    facts = _Facts(schema)
    flat = [name for name in names if not opens(schema.model_fields[name])]
    blocks = ["\n".join(entry(schema.model_fields[name], name, facts, {}) for name in flat)] if flat else []
    for name in names:
        if name not in flat:
            blocks += section_blocks(schema.model_fields[name], name, facts, {})
    return "\n\n".join(blocks)


class _Facts:
    """The values and reasons of an otherwise default run, for each choice of kinds asked about."""

    def __init__(self, schema: type[Settings]) -> None:
        self.schema = schema
        self.known: dict[tuple[tuple[str, str], ...], tuple[Any, dict[str, str]]] = {}

    def derived(self, path: str, kinds: dict[str, str]) -> tuple[str, str]:
        """Return the value a derived field would get, and a note on where it comes from."""
        key = tuple(kinds.items())
        if key not in self.known:
            self.known[key] = self.run(kinds)
        value, reasons = self.known[key]
        if "*" in path:
            return "", "; derived or left out"
        if path not in reasons:
            return ("", "; derived") if value is None else ("null", "; may be left out")
        for part in path.split("."):
            value = getattr(value, part)
        return "{…}" if isinstance(value, Settings) else written(value), f"; {reasons[path]}"

    def run(self, kinds: dict[str, str]) -> tuple[Any, dict[str, str]]:
        """Resolve a run in which only the kinds are chosen."""
        merge = Merge(self.schema)
        for path, kind in kinds.items():
            merge.add(along((*path.split("."), TAG), Node(kind, "help")))
        settings, _ = validate(self.schema, merge.tree)
        try:
            return fill_with_reasons(settings) if settings is not None else (None, {})
        except (ConfigError, ValueError, TypeError, ArithmeticError):
            return None, {}  # a required value is missing, so nothing can be derived from it


def section_blocks(field: FieldInfo, path: str, facts: _Facts, kinds: dict[str, str]) -> Iterator[str]:
    """Yield one block for a section, or for each kind of it, then those of the sections below."""
    place, whole = field_place(field), []
    if isinstance(place, Collection | Mapping):
        whole = [entry(field, path, facts, kinds)]
        place, path = place.item if isinstance(place, Collection) else place.value, f"{path}.*"
    for kind, model in sections_below(place):
        chosen = kinds | ({path: kind} if kind else {})
        title = f"{path}  ({TAG}={kind})" if kind else path
        fields = {name: item for name, item in model.model_fields.items() if not opens(item)}
        first = [tag_entry(field, place, path)] if kind and name_of_first(place) == kind else []
        docs = [doc_of(model) or field.description or ""] if not first else [field.description or "", doc_of(model)]
        heading = "\n".join([title, *(line for doc in docs for line in prose(doc, 2))])
        shown_fields = {name: item for name, item in fields.items() if not (kind and name == TAG)}
        lines = first + [entry(item, f"{path}.{name}", facts, chosen) for name, item in shown_fields.items()]
        yield "\n".join([*whole, heading, *lines])
        for name, item in model.model_fields.items():
            if name not in fields:
                yield from section_blocks(item, f"{path}.{name}", facts, chosen)


def opens(field: FieldInfo) -> bool:
    """Tell whether a field holds sections, itself or as items."""
    place = field_place(field)
    if isinstance(place, Collection | Mapping):
        place = place.item if isinstance(place, Collection) else place.value
    return bool(sections_below(place))


def name_of_first(place: Place) -> str | None:
    """Return the first kind of a union."""
    return next(iter(place.members), None) if isinstance(place, Choice) else None


def tag_entry(field: FieldInfo, place: Place, path: str) -> str:
    """Return the entry of `kind` itself, told once for the whole union."""
    default = getattr(default_of(field), TAG, None)
    known = ", ".join(place.members) if isinstance(place, Choice) else ""
    return row(f"{path}.{TAG}={default or ''}", f"one of {known}" + ("" if default else "; required"))


def entry(field: FieldInfo, path: str, facts: _Facts, kinds: dict[str, str]) -> str:
    """Return name, default, type, range and unit on one line, and the doc below it."""
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    unit = f" {extra['unit']}" if extra.get("unit") else ""
    default = default_of(field)
    if default is PydanticUndefined:
        value, note = "", "; required"
    else:
        value, note = facts.derived(path, kinds) if default is None else (shown_default(default), "")
    return "\n".join(
        [row(f"{path}={value}", expectation_of(field) + unit + note), *prose(field.description or "", INDENT)]
    )


def row(left: str, right: str) -> str:
    """Return a key with its default, and what it expects in a column beside it or on the next line."""
    return f"  {left:<{COLUMN}}  {right}" if len(left) <= COLUMN else f"  {left}\n{'':<{COLUMN}}    {right}"


def default_of(field: FieldInfo) -> Any:
    """Return the default of a field, made if it has to be made."""
    return field.get_default(call_default_factory=not field.default_factory_takes_validated_data)


def shown_default(value: Any) -> str:
    """Return a default as it would be typed."""
    return shown(value) if isinstance(value, str) and not value else written(getattr(value, "value", value))


def doc_of(model: type[Settings]) -> str:
    """Return the first paragraph of what a section says about itself."""
    return (model.__doc__ or "").strip().split("\n\n")[0]


def prose(text: str, indent: int) -> list[str]:
    """Return a text wrapped and set in."""
    return textwrap.wrap(" ".join(text.split()), WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent)
