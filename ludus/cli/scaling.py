"""`ludus scaling`: a ladder of small runs, the law of scale they follow, and what it foretells of a larger one."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ludus.base.config import Resolved, bare_keys
from ludus.base.console import say
from ludus.base.errors import ConfigError
from ludus.cli import grid
from ludus.cli.arguments import parse_recipe_arguments
from ludus.cli.sweep import resolve_all
from ludus.recipes.schema import Recipe

FLAGS = {"--help": False, "--folder": True, "--check": True, "--fit": False}
STAGES = "stages=[corpus, tokenizer, pretrain]"
DEPTHS, SHARES = (-2, -1, 0), (0.25, 0.5, 1.0)
BARE = ("model", "pretrain", "data")  # sections whose keys a prediction may name bare, in this order
HELP = """usage: ludus scaling RECIPE [key=a,b,c ...] [key=value ...] [predict=depth=6,steps=2000] [--folder FOLDER]
                     [--fit]
       ludus scaling --check RUN

Run a ladder of small models, fit L(N, D) = E + A / N^alpha + B / D^beta to their validation losses, with intervals, and
foretell the loss of a larger run. The prediction is written into that run's folder before it runs, and is held against
the outcome when it ends.

  ludus scaling shakespeare model.depth=2,3,4 pretrain.steps=150,300,600 predict=depth=6,steps=1200

Without values for an axis the ladder is model.depth two, one and none below the recipe's, and a quarter, a half and all
of its pretrain.steps. What has been run is not run again; --fit only fits to what is there.
--check holds a prediction against how its run ended.
"""


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    arguments = parse_recipe_arguments(argv, FLAGS, (*bare_keys(Recipe), "predict"))
    if "--help" in arguments.flags:
        say(HELP.rstrip())
        return 0
    if "--check" in arguments.flags:
        return check(Path(str(arguments.flags["--check"])))
    if arguments.recipe is None:
        raise ConfigError("RECIPE is missing: ludus scaling RECIPE key=a,b,c; RECIPE is a YAML file or a preset's name")
    wanted = [word.partition("=")[2] for word in arguments.overrides if word.startswith("predict=")]
    if len(wanted) > 1:
        raise ConfigError("predict is given twice; one run is foretold at a time")
    overrides = [word for word in arguments.overrides if not word.startswith("predict=")]
    axes, fixed = ladder(arguments.recipe, overrides)
    larger: list[str] = [*fixed, *prediction_words(wanted[0])] if wanted else []
    cells = grid.cells(axes)
    words = [[*fixed, STAGES, *(f"{key}={value}" for key, value in cell.items())] for cell in cells]
    resolved = resolve_all(arguments.recipe, [*words, *([larger] if larger else [])])
    folder = Path(str(arguments.flags.get("--folder") or Path("runs") / f"{resolved[0].settings.name}-scaling"))
    code = 0 if "--fit" in arguments.flags else climb(arguments.recipe, folder, cells, words, resolved, list(axes))
    if code:
        return code
    named = [(name, folder / name, one) for name, one in zip(grid.names(cells), resolved, strict=False)]
    return conclude(folder, named, arguments.recipe, (larger, resolved[-1], wanted[0]) if larger else None)


def ladder(recipe: str, overrides: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the axes of the ladder, those that were left out filled from the recipe, and the fixed overrides."""
    many = [word for word in overrides if len(grid.split(word.partition("=")[2])) > 1]
    fixed = [word for word in overrides if word not in many]
    axes = grid.axes(many)[0] if many else {}
    settings = resolve_all(recipe, [fixed])[0].settings
    depth, steps = settings.model.depth, settings.pretrain.steps
    if not any(key.startswith("model.") for key in axes):
        if depth is None:
            raise ConfigError("the model has a named size; give the ladder its sizes, as in model.depth=2,3,4")
        depths = sorted({max(1, depth + below) for below in DEPTHS})
        axes = {"model.depth": [str(value) for value in depths], **axes}
    if not any(key in ("pretrain.steps", "pretrain.rows", "data.context") for key in axes):
        axes |= {"pretrain.steps": [str(value) for value in sorted({max(1, round(steps * share)) for share in SHARES})]}
    return axes, [word for word in fixed if word.partition("=")[0] not in axes]


def prediction_words(text: str) -> list[str]:
    """Return the overrides of the run to foretell: `depth=6,steps=2000`, keys bare or in full."""
    found = []
    for part in grid.split(text):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise ConfigError(f"predict={text}: expected settings of the larger run, as in predict=depth=6,steps=2000")
        found.append(f"{full_key(key)}={value}")
    return found


def full_key(key: str) -> str:
    """Return a key with its section; one that is no bare key is left for the schema to judge."""
    if "." not in key:
        for name in BARE:
            if key in bare_keys(Recipe, name) and key not in bare_keys(Recipe):
                return f"{name}.{key}"
    return key


def climb(
    recipe: str,
    folder: Path,
    cells: Sequence[grid.Cell],
    words: Sequence[Sequence[str]],
    resolved: Sequence[Resolved[Recipe]],
    axes: list[str],
) -> int:
    """Run the ladder, as a sweep is run; return its exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from ludus.cli.cells import Cell, run

    work = [
        Cell(name, folder / name, settings, ["ludus", "run", recipe, *given, "--folder", str(folder / name)])
        for name, settings, given in zip(grid.names(cells), resolved, words, strict=False)
    ]
    return run(work, folder, axes)


def conclude(
    folder: Path,
    cells: Sequence[tuple[str, Path, Resolved[Recipe]]],
    recipe: str,
    larger: tuple[list[str], Resolved[Recipe], str] | None,
) -> int:
    """Fit the law to what the ladder came to, say and keep it, and foretell the larger run."""
    from ludus.planning import predictions, scaling_law, scaling_page

    found = [(name, point) for name, where, one in cells if (point := point_of(where, one)) is not None]
    if len(found) < len(cells):
        say(f"{len(cells) - len(found)} of {len(cells)} runs have no validation loss and are left out")
    names, points = [name for name, _ in found], [point for _, point in found]
    law = scaling_law.fit(points)
    file = predictions.write_law(folder, law, points, names)
    say(f"\nL(N, D) = E + A / N^alpha + B / D^beta, fitted to {len(points)} runs, which lie {law.scatter:.2%} off it")
    for name, (low, high) in law.intervals().items():
        say(f"  {name:<6} {law.constants[name]:>12.4g}   {low:.4g} to {high:.4g}")
    told: dict[str, Any] | None = None
    if larger:
        told = foretell(law, folder, recipe, larger, file)
    for page in scaling_page.write(folder, folder.name, law, points, names, told):
        say(f"see: {page.resolve().as_uri()}")
    return 0


def foretell(
    law: Any, folder: Path, recipe: str, larger: tuple[list[str], Resolved[Recipe], str], file: Path
) -> dict[str, Any]:
    """Write down what the law foretells of a larger run, and say how to make that run."""
    from ludus.planning import predictions, scaling_law, scaling_page
    from ludus.planning.text import of_recipe
    from ludus.planning.work import multiplying, pretraining

    words, resolved, text = larger
    where = folder / grid.safe(text)
    built = next((each for each in sorted(folder.glob("*")) if (each / "tokenizer" / "tokens").is_dir()), where)
    work = pretraining(resolved.settings, of_recipe(resolved.settings, built))
    told = scaling_law.predict(law, multiplying(work.shape), work.tokens)
    predictions.record(where, told, law=file, settings=words)
    say(f"\nforetold: {scaling_page.foretold(told)}")
    say(f"make it:  ludus pretrain {recipe} {' '.join(words)} --folder {where}")
    say(f"check it: ludus scaling --check {where}")
    return told


def point_of(folder: Path, resolved: Resolved[Recipe]) -> Any:
    """Return a run as a point of the law, None if it has no loss."""
    from ludus.planning.predictions import STAGE, final_loss
    from ludus.planning.scaling_law import Point
    from ludus.planning.text import of_recipe
    from ludus.planning.work import multiplying, pretraining
    from ludus.runs.manifest import Manifest

    loss = final_loss(folder)
    if loss is None:
        return None
    work = pretraining(resolved.settings, of_recipe(resolved.settings, folder))
    return Point(multiplying(work.shape), Manifest.read(folder / STAGE).tokens or work.tokens, loss)


def check(folder: Path) -> int:
    """Hold a prediction against how its run ended."""
    from ludus.planning.predictions import PREDICTION, check_prediction

    if not (folder / PREDICTION).is_file():
        raise ConfigError(f"nothing was foretold of {folder}: it holds no {PREDICTION}; `ludus scaling` writes one")
    said = check_prediction(folder)
    if said is None:
        raise ConfigError(f"{folder} has no validation loss yet; run it to its end first")
    say(said)
    return 0
