"""`ludus sweep`: a recipe with every combination of some values, a run each, and a page that compares them."""

import os
from collections.abc import Sequence
from pathlib import Path

from ludus.base.config import Resolved, bare_keys, resolve
from ludus.base.console import say
from ludus.base.errors import ConfigError
from ludus.cli import grid
from ludus.cli.arguments import parse_recipe_arguments
from ludus.cli.stage import PRESETS
from ludus.recipes.schema import Recipe

FLAGS = {"--help": False, "--folder": True}
HELP = """usage: ludus sweep RECIPE key=a,b,c [key=x,y ...] [key=value ...] [--folder FOLDER]

Run a recipe with every combination of some values, and compare.

  ludus sweep shakespeare model.depth=2,4,6 data.context=32,64 pretrain.steps=200

Values are separated by commas; a list in brackets is one value. Each combination is a run of its own, in
runs/NAME-sweep/depth=2,context=32 or such, and may be resumed, chatted with and explained like any run. What is up to
date is not made again, and what does not depend on the swept settings is made once and shared. At the end comes a
table, the best first, and comparison.html. `ludus run --help` shows every setting.
"""


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    arguments = parse_recipe_arguments(argv, FLAGS, bare_keys(Recipe))
    if "--help" in arguments.flags:
        say(HELP.rstrip())
        return 0
    if arguments.recipe is None:
        raise ConfigError("RECIPE is missing: ludus sweep RECIPE key=a,b,c; RECIPE is a YAML file or a preset's name")
    axes, fixed = grid.axes(arguments.overrides)
    cells = grid.cells(axes)
    overrides = [[*fixed, *(f"{key}={value}" for key, value in cell.items())] for cell in cells]
    resolved = resolve_all(arguments.recipe, overrides)
    folder = Path(str(arguments.flags.get("--folder") or Path("runs") / f"{resolved[0].settings.name}-sweep"))
    from ludus.cli.cells import Cell, run

    commands = [["ludus", "run", arguments.recipe, *words, "--folder"] for words in overrides]
    work = [
        Cell(name, folder / name, settings, [*command, str(folder / name)])
        for name, settings, command in zip(grid.names(cells), resolved, commands, strict=True)
    ]
    return run(work, folder, list(axes))


def resolve_all(recipe: str, overrides: Sequence[Sequence[str]]) -> list[Resolved[Recipe]]:
    """Resolve every cell before any runs. Raises ConfigError with each mistake once, whichever cell it is in."""
    found: list[Resolved[Recipe]] = []
    mistakes: dict[str, None] = {}
    for words in overrides:
        try:
            found.append(resolve(Recipe, recipe=recipe, presets=PRESETS, environment=os.environ, overrides=words))
        except ConfigError as error:
            mistakes |= dict.fromkeys(str(error).splitlines())
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return found
