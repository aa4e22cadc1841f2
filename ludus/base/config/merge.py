"""Lay one tree of given values over another, under the eye of the schema.

Sections merge key by key. Choosing another `kind` starts that section afresh: nothing of the old kind leaks into the
new. Lists and mappings with free keys are values and are replaced. Every key is checked here, against the layer it came
from; whether a value has the right type is pydantic's business, later.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from ludus.base.config.places import (
    TAG,
    Choice,
    Leaf,
    Mapping,
    Place,
    Section,
    Sequence,
    bare,
    field_place,
    paths,
    union_members,
)
from ludus.base.config.problems import Problem, did_you_mean, shown
from ludus.base.config.settings import Settings
from ludus.base.config.suggest import suggest_path, suggest_word
from ludus.base.config.tree import DEFAULT, Node, along, defaults, fresh, overlay

Key = tuple[str, ...]


class Merge:
    """The values so far, the problems met and what a change of kind left behind."""

    def __init__(self, schema: type[Settings]) -> None:
        self.schema = schema
        self.tree = defaults(schema)
        self.problems: list[Problem] = []
        self.dropped: list[str] = []
        self.strangers: list[tuple[Key, str, Choice, str]] = []

    def add(self, layer: Node) -> None:
        """Lay one more layer over what is there."""
        self.tree = self._place(Section(self.schema), self.tree, layer, ())

    def finish(self) -> list[Problem]:
        """Return every problem met; keys of another kind are told last, when it is known which kind the run uses."""
        return self.problems + [self._stranger(*found) for found in self.strangers]

    def _place(self, place: Place, below: Node, above: Node, path: Key) -> Node:
        """Return what stands at a place once `above` is laid over `below`."""
        match place:
            case Section():
                return self._optional_section(place, below, above, path)
            case Choice():
                return self._choice(place, below, above, path)
            case Mapping():
                return self._mapping(place, below, above, path)
            case Sequence():
                return self._sequence(place, below, above, path)
            case Leaf():
                return self._value(place, below, above, path)

    def _value(self, place: Leaf | Sequence, below: Node, above: Node, path: Key) -> Node:
        if not above.partial:
            return typed(place.annotation, above)
        key = ".".join(path)
        hint = f"a list is replaced whole, as in {key}=[a, b]" if isinstance(place, Sequence) else f"{key} is one value"
        self.problems.append(Problem((*path, next(joined(above))[0]), "unknown key", above.origin, hint))
        return below

    def _optional_section(self, place: Section, below: Node, above: Node, path: Key) -> Node:
        if above.value is None:
            return Node(None, above.origin) if place.optional else below
        if not isinstance(above.value, dict):
            short = place.model.shorthand
            if short is None or isinstance(above.value, list):
                self._not_a_section(above, path)
                return below
            above = along((short,), above)
        return self._section(
            place.model, below if isinstance(below.value, dict) else defaults(place.model), above, path
        )

    def _section(
        self, model: type[Settings], below: Node, above: Node, path: Key, choice: Choice | None = None
    ) -> Node:
        merged = dict(below.value)
        for key, node in entries(model, above):
            field = model.model_fields.get(key)
            if field is None:
                self._unknown(model, (*path, key), node, choice, below)
                continue
            if node.value is None and field.default is None:
                merged.pop(key, None)  # null gives a derived field back to its derivation
                continue
            place = field_place(field)
            merged[key] = self._place(place, merged.get(key) or fresh(place), node, (*path, key))
        return Node(merged, above.origin if not above.partial else below.origin)

    def _choice(self, place: Choice, below: Node, above: Node, path: Key) -> Node:
        if above.value is None:
            return Node(None, above.origin) if place.optional else below
        if not isinstance(above.value, dict):
            self._not_a_section(above, path, place)
            return below
        old = below.value.get(TAG) if isinstance(below.value, dict) else None
        new = above.value.get(TAG, old)
        if new is None or str(new.value) not in place.members:
            self._wrong_kind(place, new, above, path)
            return below
        if old is None or new.value != old.value:
            self._drop(below, new, path)
            below = fresh(place, str(new.value))
        return self._section(place.members[str(new.value)], below, above, path, place)

    def _mapping(self, place: Mapping, below: Node, above: Node, path: Key) -> Node:
        if not isinstance(above.value, dict):
            return typed(place.annotation, above)
        merged = dict(below.value) if above.partial and isinstance(below.value, dict) else {}
        given = above.value if not isinstance(place.value, Leaf) else dict(joined(above))
        for key, node in given.items():
            merged[key] = self._place(place.value, merged.get(key) or fresh(place.value), node, (*path, key))
        return Node(merged, above.origin)

    def _sequence(self, place: Sequence, below: Node, above: Node, path: Key) -> Node:
        if not isinstance(above.value, list):
            return self._value(place, below, above, path)
        items = [
            self._place(place.item, fresh(place.item), node, (*path, str(i))) for i, node in enumerate(above.value)
        ]
        return Node(items, above.origin)

    def _drop(self, below: Node, new: Node, path: Key) -> None:
        if below.value:
            gone = [(key, node) for key, node in below.leaves(path) if node.origin != DEFAULT and key[-1] != TAG]
            chose = f"{'.'.join(path)}.{TAG} became {new.value} ({new.origin})"
            self.dropped += [
                f"{'.'.join(key)}: {shown(node.value)} ({node.origin}), since {chose}" for key, node in gone
            ]

    def _unknown(self, model: type[Settings], path: Key, node: Node, choice: Choice | None, below: Node) -> None:
        if choice is not None:
            owners = [tag for tag, member in choice.members.items() if path[-1] in member.model_fields]
            if owners:
                self.strangers.append((path, node.origin, choice, str(below.value[TAG].value)))
                return
        section, origin = path[:-1], node.origin
        while isinstance(node.value, dict) and len(node.value) == 1:
            key, node = next(iter(node.value.items()))
            path = (*path, key)
        wrong = ".".join(path)
        here = [".".join((*section, name)) for name in model.model_fields]
        meant = suggest_path(wrong, list(dict.fromkeys([*here, *paths(self.schema)])))
        self.problems.append(Problem(path, "unknown key", origin, did_you_mean(meant)))

    def _stranger(self, path: Key, origin: str, choice: Choice, tag: str) -> Problem:
        owners = [owner for owner, member in choice.members.items() if path[-1] in member.model_fields]
        section = ".".join(path[:-1])
        final = self.tree.at((*path[:-1], TAG)).value
        uses = f"this run uses {tag}" if str(final) == tag else f"where it was set, the kind was still {tag}"
        reason = f"`{path[-1]}` belongs to {section}.{TAG}={' or '.join(owners)}; {uses}"
        return Problem(path, reason, origin)

    def _wrong_kind(self, place: Choice, new: Node | None, above: Node, path: Key) -> None:
        known = ", ".join(place.members)
        if new is None:
            self.problems.append(Problem((*path, TAG), f"not given; expected one of {known}", above.origin))
            return
        hint = did_you_mean(suggest_word(str(new.value), place.members))
        self.problems.append(
            Problem((*path, TAG), f"expected one of {known}, got {shown(new.plain())}", new.origin, hint)
        )

    def _not_a_section(self, above: Node, path: Key, choice: Choice | None = None) -> None:
        tag = suggest_word(str(above.value), choice.members) if choice else None
        hint = did_you_mean(f"{'.'.join(path)}.{TAG}={tag}" if tag else None)
        self.problems.append(
            Problem(path, f"expected a section with keys, got {shown(above.plain())}", above.origin, hint)
        )


def entries(model: type[Settings], above: Node) -> Iterator[tuple[str, Node]]:
    """Yield the keys of a section; a dotted key (`model.depth: 6`) is read as a path, and later ones win."""
    found: dict[str, Node] = {}
    for key, node in above.value.items():
        if above.partial and key not in model.model_fields:
            key = key.replace("-", "_")
        first, *rest = key.split(".")
        step = along(tuple(rest), node)
        found[first] = overlay(found[first], step) if first in found else step
    yield from found.items()


def joined(above: Node) -> Iterator[tuple[str, Node]]:
    """Yield the entries of a mapping of values; the dots of a typed name (`weights.web.txt=2`) belong to the name."""
    for key, node in above.value.items():
        if node.partial:
            yield from ((f"{key}.{rest}", below) for rest, below in joined(node))
        else:
            yield key, node


def typed(annotation: Any, node: Node) -> Node:
    """Return the node, except that a text field takes what was typed as it stands."""
    if node.text is not None and takes_text(annotation, node.text):
        return Node(node.text, node.origin)
    return node


def takes_text(annotation: Any, text: str) -> bool:
    """Tell whether a raw value is text here, however much it looks like a number."""
    members, optional = union_members(annotation)
    if optional and text in ("null", "~"):
        return False
    if len(members) != 1:
        return False
    if get_origin(bare(members[0])) is Literal:
        return text in get_args(bare(members[0]))
    return members[0] in (str, Path)
