"""Ask pydantic whether the merged values are right, and say in our words what is not.

Pydantic's own texts name its internals and its help site; a user needs the key, what was expected, what was given and
where.
"""

import enum
import math
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ludus.base.config.expect import expectation, expectation_of
from ludus.base.config.places import Choice, Mapping, Place, Section, Sequence, bare, field_place, union_members
from ludus.base.config.problems import Problem, did_you_mean, shown
from ludus.base.config.settings import Settings
from ludus.base.config.suggest import suggest_word
from ludus.base.config.tree import DEFAULT, Node

S = TypeVar("S", bound=Settings)


def validate(schema: type[S], tree: Node) -> tuple[S | None, list[Problem]]:
    """Return the settings, or None and the problems."""
    plain = tree.plain()
    problems = list(misread_booleans(Section(schema), tree, ()))
    try:
        settings = schema.model_validate(plain)
    except ValidationError as error:
        found = [problem_of(schema, tree, item) for item in error.errors(include_url=False)]
        problems += {problem.path: problem for problem in reversed(found)}.values()
        return None, list({problem.path: problem for problem in reversed(problems)}.values())[::-1]
    return (None, problems) if problems else (settings, [])


def problem_of(schema: type[Settings], tree: Node, error: Any) -> Problem:
    """Put one finding of pydantic into our words."""
    path, place, field = locate(schema, error["loc"])
    origin = tree.at(path).origin
    kind, value = error["type"], error["input"]
    if kind == "missing":
        key = ".".join(map(str, path))
        in_list = any(isinstance(part, int) for part in path)
        hint = "" if in_list else f"set it in the recipe or as {key}=VALUE"
        return Problem(path, "not given, and it has no default", origin if in_list else DEFAULT, hint)
    if kind in ("value_error", "assertion_error"):
        said_by_one_value = not isinstance(tree.at(path).value, dict)
        return Problem(path, str(error["ctx"]["error"]), origin if said_by_one_value else DEFAULT)
    node = tree.at(path)
    whole = node.plain() if field is not None else value
    wanted = expectation_of(field) if field is not None else expectation(annotation_of(place))
    return Problem(path, f"expected {wanted}, got {shown(whole)}", origin, hint_for(field, whole))


def hint_for(field: FieldInfo | None, value: Any) -> str:
    """Return what helps most: the nearest choice, or quotes around text that looks like a number."""
    members = union_members(field.annotation)[0] if field is not None else []
    if isinstance(value, str):
        return did_you_mean(suggest_word(value, [choice for member in members for choice in closed_set(member)]))
    if members == [str] and isinstance(value, bool | int | float):
        return "put it in quotes"
    if float in members and isinstance(value, float) and not math.isfinite(value):
        return "it must be finite"
    return ""


def closed_set(annotation: Any) -> list[str]:
    """Return the values of a Literal or an enumeration, as text."""
    annotation = bare(annotation)
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return [str(member.value) for member in annotation]
    return []


def locate(schema: type[Settings], loc: tuple[Any, ...]) -> tuple[tuple[Any, ...], Place, FieldInfo | None]:
    """Turn pydantic's location, which names union members too, into a dotted path, its place and its field if any."""
    place: Place = Section(schema)
    path: tuple[Any, ...] = ()
    field: FieldInfo | None = None
    for part in loc:
        if isinstance(place, Choice):
            place = Section(place.members[part]) if part in place.members else place
            continue
        if isinstance(place, Section) and part in place.model.model_fields:
            field = place.model.model_fields[part]
            place, path = field_place(field), (*path, part)
        elif isinstance(place, Mapping | Sequence):
            place, path, field = place.item if isinstance(place, Sequence) else place.value, (*path, part), None
        else:
            break
    return path, place, field


def annotation_of(place: Place) -> Any:
    """Return a type that stands for a place that is no field of its own."""
    if isinstance(place, Section):
        return place.model
    return next(iter(place.members.values())) if isinstance(place, Choice) else place.annotation


def misread_booleans(place: Place, node: Node, path: tuple[Any, ...]) -> list[Problem]:
    """Find true and false where a number belongs: pydantic would read them as 1 and 0."""
    if not isinstance(place, Section | Choice) or not isinstance(node.value, dict):
        return []
    model = place.model if isinstance(place, Section) else place.members.get(str(node.at(("kind",)).value))
    found: list[Problem] = []
    for name, child in node.value.items():
        field = model.model_fields[name] if model else None
        if field is None:
            continue
        members = union_members(field.annotation)[0]
        if isinstance(child.value, bool) and bool not in members and {int, float} & set(members):
            reason = f"expected {expectation_of(field)}, got {shown(child.value)}"
            found.append(Problem((*path, name), reason, child.origin))
        found += misread_booleans(field_place(field), child, (*path, name))
    return found
