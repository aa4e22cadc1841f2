"""What the environment and the command line say, as trees like any other layer.

`LUDUS__MODEL__DEPTH=6`, `model.depth=6`, `--model.depth=6` and `--model.depth 6` are the same request.
Values are YAML 1.2 on one line; a text field takes what was typed as it stands.
"""

from collections.abc import Iterator, Mapping, Sequence

from ludus.base.config.places import Section, field_place, sections_below
from ludus.base.config.settings import Settings
from ludus.base.config.tree import Node, along, overlay
from ludus.base.config.yaml import read_yaml
from ludus.base.errors import ConfigError

PREFIX = "LUDUS__"
COMMAND_LINE = "command line"
PRESET = "preset"


def environment_layer(schema: type[Settings], environment: Mapping[str, str]) -> Node:
    """Return what the variables that begin with `LUDUS__` set; a double underscore stands for the dot."""
    tree = Node({}, "environment", partial=True)
    for name in sorted(environment):
        if name.upper().startswith(PREFIX):
            path = tuple(name[len(PREFIX) :].lower().split("__"))
            tree = overlay(tree, placed(schema, path, value_node(environment[name], f"environment {name}")))
    return tree


def command_line_layer(schema: type[Settings], overrides: Sequence[str], section: str | None) -> Node:
    """Return what the overrides set; in a section's own command its keys may stand without the section's name."""
    tree = Node({}, COMMAND_LINE, partial=True)
    inside = section_keys(schema, section) if section else set()
    for key, text in pairs(overrides):
        path = tuple(key.split("."))
        first = path[0].replace("-", "_")
        if section and first in inside and first not in schema.model_fields:
            path = (section, *path)
        tree = overlay(tree, placed(schema, path, value_node(text, COMMAND_LINE)))
    return tree


def placed(schema: type[Settings], path: tuple[str, ...], node: Node) -> Node:
    """Wrap a node at its path; a plain value for a section with a shorthand goes to that field, beside its others."""
    first = schema.model_fields.get(path[0])
    place = field_place(first) if first and len(path) == 1 else None
    short = place.model.shorthand if isinstance(place, Section) and not isinstance(node.value, dict) else None
    return along((*path, short) if short else path, node)


def pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (key, text) for `key=text`, `--key=text`, `--key text`, and `--key` alone, which means true."""
    waiting = list(overrides)
    while waiting:
        word = waiting.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not equals:
            if not word.startswith("--"):
                raise ConfigError(f"{word}: an override needs a value, as in {word}=VALUE (from {COMMAND_LINE})")
            text = waiting.pop(0) if waiting and not waiting[0].startswith("--") else "true"
        if not key.strip() or "" in key.split("."):
            raise ConfigError(f"{word}: not a key; an override looks like model.depth=6 (from {COMMAND_LINE})")
        yield key.strip(), text


def value_node(text: str, origin: str) -> Node:
    """Return the node for one typed value; text that is not YAML is text."""
    try:
        node = read_yaml(text, lambda line: origin, raw=True)
    except ConfigError:
        return Node(text, origin, text)
    return Node(node.value, origin, text)


def bare_keys(schema: type[Settings], section: str | None = None) -> set[str]:
    """Return the keys that need no section's name in front: those of the schema, and of one section."""
    return set(schema.model_fields) | (section_keys(schema, section) if section else set())


def section_keys(schema: type[Settings], section: str) -> set[str]:
    """Return the keys that may stand in a section, whatever its kind."""
    members = sections_below(field_place(schema.model_fields[section]))
    return {name for _, member in members for name in member.model_fields}


def split_preset(layer: Node, schema: type[Settings]) -> tuple[Node, Node | None]:
    """Take the choice of a preset out of a layer."""
    if PRESET not in layer.value or PRESET in schema.model_fields:
        return layer, None
    rest = {key: node for key, node in layer.value.items() if key != PRESET}
    return Node(rest, layer.origin, partial=layer.partial), layer.value[PRESET]
