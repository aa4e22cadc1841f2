"""Resolve a configuration: defaults < recipe < its preset < environment < command line < what is derived from those.

The result knows for each value where it came from; a run folder keeps both, and `load_resolved` reads them back.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from ludus.base.config.fill import fill_with_reasons
from ludus.base.config.merge import Merge
from ludus.base.config.overrides import command_line_layer, environment_layer, split_preset
from ludus.base.config.problems import raise_problems, written
from ludus.base.config.recipe import layers, machine_note, read_recipe
from ludus.base.config.settings import Settings
from ludus.base.config.tree import DEFAULT, Node, as_node
from ludus.base.config.validate import validate
from ludus.base.errors import ConfigError

S = TypeVar("S", bound=Settings)
WIDEST_COLUMN = 48


@dataclass(frozen=True)
class Resolved(Generic[S]):
    """Settings without a gap, the origin of every value by dotted path, and values a change of `kind` left behind.

    `notes` are choices made for the user that he should hear of.
    """

    settings: S
    origins: dict[str, str]
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def render(self) -> str:
        """Return every value with its origin, one to a line; the text is itself a recipe."""
        lines = [(path, f"{path}: {written(value)}") for path, value in leaves(self.settings)]
        column = min(WIDEST_COLUMN, max((len(line) for _, line in lines), default=0))
        text = [f"{line:<{column}}  # {self.origins[path]}" for path, line in lines]
        notes = [f"# {note}" for note in self.notes] + [f"# not used: {dropped}" for dropped in self.dropped]
        return "\n".join(text + notes)

    def as_json(self) -> dict[str, Any]:
        """Return what the run folder keeps."""
        settings = self.settings.model_dump(mode="json", warnings=False)
        return {"settings": settings, "origins": self.origins, "dropped": list(self.dropped)}


def resolve(
    schema: type[S],
    *,
    recipe: str | Path | None,
    presets: Path,
    environment: Mapping[str, str],
    overrides: Sequence[str],
    section: str | None = None,
) -> Resolved[S]:
    """Merge every source of values, check them and derive the rest.

    `presets` is the folder in which a recipe is looked up by name. `section` names a field of the schema whose keys the
    overrides may use bare. Raises ConfigError with one line for each mistake.
    """
    typed, chosen_here = split_preset(command_line_layer(schema, overrides, section), schema)
    from_environment, chosen_there = split_preset(environment_layer(schema, environment), schema)
    choice = chosen_here or chosen_there
    if choice and recipe is None:
        raise ConfigError(f"preset: a preset is a variant of a recipe, and no recipe was given (from {choice.origin})")
    chain = read_recipe(recipe, presets) if recipe else []
    merge = Merge(schema)
    for layer in [*layers(chain, choice), from_environment, typed]:
        merge.add(layer)
    note = None if choice else machine_note(chain)
    return replace(_checked(schema, merge), notes=(note,) if note else ())


def _checked(schema: type[S], merge: Merge) -> Resolved[S]:
    settings, invalid = validate(schema, merge.tree)
    raise_problems([*merge.finish(), *invalid])
    assert settings is not None
    filled, reasons = fill_with_reasons(settings)
    return Resolved(filled, _origins(filled, merge.tree, reasons), tuple(merge.dropped))


def _origins(settings: Settings, tree: Node, reasons: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for path, _ in leaves(settings):
        parts = tuple(path.split("."))
        above = next((".".join(parts[:i]) for i in range(len(parts), 0, -1) if ".".join(parts[:i]) in reasons), None)
        found[path] = reasons[above] if above else _origin_at(tree, parts)
    return found


def _origin_at(tree: Node, path: tuple[str, ...]) -> str:
    """Return the origin of exactly this path; a value nobody gave is a default, whoever gave its neighbours."""
    for part in path:
        if not isinstance(tree.value, dict) or part not in tree.value:
            return DEFAULT
        tree = tree.value[part]
    return tree.origin


def leaves(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, plain value) for every value, sections opened."""
    plain = settings.model_dump(mode="json", warnings=False)
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Settings):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", plain[name]


def load_resolved(schema: type[S], path: str | Path) -> Resolved[S]:
    """Read back what `Resolved.as_json` wrote. Raises ConfigError if it is damaged or of another schema."""
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        values, origins = stored["settings"], dict(stored["origins"])
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is damaged; expected JSON with `settings` and `origins`") from None
    merge = Merge(schema)
    merge.add(as_node(values, str(path)))
    resolved = _checked(schema, merge)
    return Resolved(resolved.settings, resolved.origins | origins, tuple(stored.get("dropped", ())))
