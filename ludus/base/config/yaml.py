"""YAML 1.2 into nodes: plain data only, each value with its line.

The composer of ruamel.yaml finds the scalars; what they mean is decided here, in a dozen lines: null, true and false,
numbers, text. Tags, merge keys, duplicate keys and documents that grow without end are refused. Dates stay text.
"""

from collections.abc import Callable
from typing import Any

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from ludus.base.config.tree import Node
from ludus.base.errors import ConfigError

MOST_VALUES = 20_000
LONGEST_NUMBER = 100
STANDARD = "tag:yaml.org,2002:"
TAGS = {"null", "bool", "int", "float", "str", "timestamp", "map", "seq"}


def read_yaml(text: str, origin: Callable[[int], str], *, raw: bool = False) -> Node:
    """Parse one document; `origin(line)` names a line (from 1) in messages. `raw` keeps the text of each scalar.

    Raises ConfigError, one line that begins with the place.
    """
    try:
        document = YAML(pure=True).compose(text)  # type: ignore[arg-type]
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{origin(line)}: not valid YAML: {error.problem or error.context}") from None
    except (YAMLError, ValueError) as error:
        first = next(iter(str(error).splitlines()), "unreadable")
        raise ConfigError(f"{origin(1)}: not valid YAML: {first}") from None
    except RecursionError:
        raise ConfigError(f"{origin(1)}: nested too deeply") from None
    return Node(None, origin(1)) if document is None else _Reader(origin, raw).node(document, ())


class _Reader:
    """Turns the composed document into nodes and counts them, so that aliases cannot blow it up."""

    def __init__(self, origin: Callable[[int], str], raw: bool) -> None:
        self.origin, self.raw, self.count = origin, raw, 0

    def node(self, found: Any, above: tuple[int, ...]) -> Node:
        place = self.origin(found.start_mark.line + 1)
        self.count += 1
        if self.count > MOST_VALUES or id(found) in above:
            raise ConfigError(f"{place}: aliases repeat themselves, or there are over {MOST_VALUES} values")
        self.check_tag(str(found.tag), place)
        above = (*above, id(found))
        if isinstance(found, MappingNode):
            return Node(self.mapping(found, above), place)
        if isinstance(found, SequenceNode):
            return Node([self.node(item, above) for item in found.value], place)
        return self.scalar(found, place)

    def mapping(self, found: MappingNode, above: tuple[int, ...]) -> dict[str, Node]:
        nodes: dict[str, Node] = {}
        for key_node, value_node in found.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode) or str(key_node.tag).endswith(":merge"):
                raise ConfigError(
                    f"{self.origin(line)}: a key must be a name; merge keys are not YAML 1.2, use `extends:`"
                )
            key = str(key_node.value)
            if key in nodes:
                raise ConfigError(f"{self.origin(line)}: `{key}` is set twice in the same place; keep one of the two")
            node = self.node(value_node, above)
            nodes[key] = Node(node.value, self.origin(line), node.text)
        return nodes

    def scalar(self, found: ScalarNode, place: str) -> Node:
        text = str(found.value)
        quoted = found.style is not None
        return Node(text if quoted else scalar_value(str(found.tag), text), place, text if self.raw else None)

    def check_tag(self, tag: str, place: str) -> None:
        if not tag.startswith(STANDARD) or tag.removeprefix(STANDARD) not in TAGS:
            raise ConfigError(f"{place}: the tag {tag} is not allowed; a recipe is plain data")


def scalar_value(tag: str, text: str) -> Any:
    """Return what an unquoted scalar means in YAML 1.2 (`010` is ten, `1e-4` a number, a date is text)."""
    kind = "str" if len(text) > LONGEST_NUMBER else tag.removeprefix(STANDARD)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        digits = text.replace("_", "")
        return int(digits, 0) if digits.lstrip("+-")[:2].lower() in ("0x", "0o", "0b") else int(digits)
    if kind == "float":
        return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text
