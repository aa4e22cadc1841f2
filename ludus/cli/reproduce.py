"""The command that makes a stage again, from what its manifest and its run say about how it was made."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ludus.base.config import load_resolved, resolve
from ludus.base.errors import LudusError
from ludus.base.files import read_json
from ludus.cli.arguments import parse_recipe_arguments
from ludus.cli.stage import FLAGS, PRESETS
from ludus.cli.verbs import STAGE, VERBS
from ludus.recipes.schema import Recipe
from ludus.runs.manifest import MANIFEST, Manifest

OF_NOBODY = ("default", "derived")


def command_of(manifest: Manifest, run: Path) -> str:
    """Return the command that makes a stage again; `run` is its run's folder, as it is to be named.

    That is the recorded one, with what the environment had set. A stage made by `resume`, `sweep` or a script goes by
    the command that its run was begun with if that still means the same settings; else by one that names them all.
    """
    argv = typed(manifest.command)
    if makes_stages(argv):
        return shlex.join([*argv, *from_environment(manifest.origins, manifest.settings)])
    recipe = run / "recipe.json"
    if not recipe.is_file():
        return shlex.join(["ludus", "run", *overrides(manifest.origins, manifest.settings)])
    stored = read_json(recipe)
    verb = read_json(run / "run.json").get("verb", "run") if (run / "run.json").is_file() else "run"
    environment = from_environment(stored["origins"], stored["settings"])
    for begun in commands_in(run):
        if begun[1] == verb and means([*begun, *environment], recipe):
            return shlex.join([*begun, *environment])
    words = overrides(stored["origins"], stored["settings"])
    return shlex.join(["ludus", verb, *words, "--folder", str(run)])


def typed(argv: Sequence[str]) -> list[str]:
    """Return a recorded command line as it was typed."""
    return ["ludus", *argv[1:]]


def makes_stages(argv: Sequence[str]) -> bool:
    """Tell whether a command line is that of a verb that makes stages."""
    return len(argv) > 1 and argv[1] in VERBS and VERBS[argv[1]].module == STAGE


def commands_in(run: Path) -> Iterator[list[str]]:
    """Yield the command lines that made stages of a run, the newest first."""
    found = [Manifest.read(file.parent) for file in run.glob(f"*/{MANIFEST}") if readable(file.parent)]
    for manifest in sorted(found, key=lambda manifest: manifest.started, reverse=True):
        if makes_stages(typed(manifest.command)):
            yield typed(manifest.command)


def readable(folder: Path) -> bool:
    """Tell whether a folder holds the manifest of a stage."""
    try:
        return bool(Manifest.read(folder).stage)
    except LudusError:
        return False


def means(argv: Sequence[str], recipe: Path) -> bool:
    """Tell whether a command line, given now, has the settings that a run's `recipe.json` holds."""
    section = argv[1] if argv[1] in Recipe.model_fields else None
    try:
        arguments = parse_recipe_arguments(argv[2:], FLAGS)
        found = resolve(
            Recipe,
            recipe=arguments.recipe,
            presets=PRESETS,
            environment={},
            overrides=arguments.overrides,
            section=section,
        )
        return found.settings == load_resolved(Recipe, recipe).settings
    except LudusError:
        return False


def from_environment(origins: Mapping[str, str], settings: Any) -> list[str]:
    """Return what the environment had set, as overrides."""
    return overrides({key: origin for key, origin in origins.items() if origin.startswith("environment")}, settings)


def overrides(origins: Mapping[str, str], settings: Any) -> list[str]:
    """Return the settings that somebody chose, as overrides."""
    chosen = [key for key, origin in origins.items() if not origin.startswith(OF_NOBODY)]
    return [f"{key}={flow(value_at(settings, key))}" for key in chosen]


def value_at(settings: Any, key: str) -> Any:
    """Return the value at a dotted path, None where there is none."""
    for part in key.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings


def flow(value: Any) -> str:
    """Return a value as an override takes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
