"""A tree of given values that remembers where each came from.

Every layer (defaults, recipe, environment, command line) becomes such a tree; merging trees is elsewhere. A node holds
a plain value, a dict of nodes or a list of nodes, and an origin in words a message can print.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticUndefined

from ludus.base.config.places import Choice, Leaf, Place, Section, field_place, tags_of
from ludus.base.config.settings import Settings

DEFAULT = "default"


@dataclass(frozen=True)
class Node:
    """A value as given, with its origin.

    `text` is what was typed, where that is known (environment, command line), so that a text field can take it unread.
    `partial` marks the steps of a dotted path: they lead to a value, they are not one.
    """

    value: Any
    origin: str
    text: str | None = None
    partial: bool = False

    def plain(self) -> Any:
        """Return the value without origins."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def at(self, path: tuple[Any, ...]) -> "Node":
        """Return the node at a path, or the last one on the way there."""
        node = self
        for part in path:
            below = node.value
            if isinstance(below, list) and isinstance(part, int):
                below = dict(enumerate(below))
            if not isinstance(below, dict) or part not in below:
                break
            node = below[part]
        return node

    def leaves(self, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], "Node"]]:
        """Yield (path, node) for each value below that is not a mapping."""
        if not isinstance(self.value, dict):
            yield path, self
            return
        for key, node in self.value.items():
            yield from node.leaves((*path, key))


def along(path: tuple[str, ...], leaf: Node) -> Node:
    """Wrap a node so that it stands at a dotted path."""
    for part in reversed(path):
        leaf = Node({part: leaf}, leaf.origin, partial=True)
    return leaf


def overlay(below: Node, above: Node) -> Node:
    """Merge two nodes of one layer, the later above the earlier."""
    if not (isinstance(below.value, dict) and isinstance(above.value, dict) and above.partial):
        return above
    merged = dict(below.value)
    for key, node in above.value.items():
        merged[key] = overlay(merged[key], node) if key in merged else node
    return Node(merged, below.origin, partial=below.partial)


def defaults(model: type[Settings]) -> Node:
    """Return the tree of a section's defaults; derived and required fields are left out."""
    found: dict[str, Node] = {}
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=not field.default_factory_takes_validated_data)
        place = field_place(field)
        if default is not None and default is not PydanticUndefined:
            found[name] = as_node(default, DEFAULT)
        elif default is PydanticUndefined and isinstance(place, Section) and not place.optional:
            found[name] = defaults(place.model)
    return Node(found, DEFAULT)


def fresh(place: Place, tag: str | None = None) -> Node:
    """Return the defaults of whatever may stand at a place, for a place that was empty."""
    if isinstance(place, Section):
        return defaults(place.model)
    if isinstance(place, Choice) and tag in place.members:
        member = place.members[tag]
        chosen = defaults(member).value | ({"kind": Node(tag, DEFAULT)} if tags_of(member) else {})
        return Node(chosen, DEFAULT)
    return Node(None if isinstance(place, Leaf) else {}, DEFAULT)


def as_node(value: Any, origin: str) -> Node:
    """Turn a value, a `Settings` among them, into a tree with one origin; None in a derived field is left out."""
    if isinstance(value, Settings):
        fields = type(value).model_fields
        given = {name: getattr(value, name) for name in fields}
        kept = {name: item for name, item in given.items() if item is not None or fields[name].default is not None}
        return Node({name: as_node(item, origin) for name, item in kept.items()}, origin)
    if isinstance(value, dict):
        return Node({key: as_node(item, origin) for key, item in value.items()}, origin)
    if isinstance(value, list | tuple):
        return Node([as_node(item, origin) for item in value], origin)
    return Node(value, origin)
