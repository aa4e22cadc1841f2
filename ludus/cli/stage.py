"""The verbs that make things: read a recipe, print what it says or run its stages."""

import os
from collections.abc import Sequence
from pathlib import Path

from ludus.base.config import Resolved, bare_keys, describe, load_resolved, preset_names, resolve
from ludus.base.console import say
from ludus.base.errors import ConfigError
from ludus.cli.arguments import parse_recipe_arguments
from ludus.cli.verbs import VERBS
from ludus.recipes.schema import Recipe

PRESETS = Path(__file__).parent.parent / "recipes" / "presets"
RECORD = "recipe.json"
TUNING = ("sft", "dpo", "grpo")  # stages that start from a model
FLAGS = {"--help": False, "--print-config": False, "--folder": True}
USAGE = """usage: ludus {verb} [RECIPE] [key=value ...] [--folder FOLDER] [--print-config]

{doc}.

RECIPE is a YAML file, the folder of a run, or one of: {presets}. Settings come from their
defaults, then the recipe, then the environment (LUDUS__MODEL__DEPTH=6), then the command line
(model.depth=6). The run's folder is runs/NAME.
--print-config shows every value and where it comes from, and runs nothing.
"""


def main(verb: str, argv: Sequence[str]) -> int:
    """Run a verb."""
    section = verb if verb in Recipe.model_fields else None
    arguments = parse_recipe_arguments(argv, FLAGS, bare_keys(Recipe, section))
    if "--help" in arguments.flags:
        say(help_text(verb))
        return 0
    run_folder = Path(arguments.recipe) if arguments.recipe and (Path(arguments.recipe) / RECORD).is_file() else None
    if run_folder:
        resolved = recorded(run_folder, arguments.overrides)
    else:
        overrides = arguments.overrides
        if arguments.recipe is None and verb in TUNING and brings_a_model(overrides):
            overrides = [f"stages=[{verb}]", *overrides]  # that stage alone, on that model
        resolved = resolve(
            Recipe,
            recipe=arguments.recipe,
            presets=PRESETS,
            environment=os.environ,
            overrides=overrides,
            section=section,
        )
    if "--print-config" in arguments.flags:
        say(resolved.render())
        return 0
    chosen = arguments.flags.get("--folder") or run_folder
    return execute(resolved, verb, Path(str(chosen)) if chosen else Path("runs") / resolved.settings.name)


def brings_a_model(overrides: Sequence[str]) -> bool:
    """Tell whether a command names a model to start from."""
    return any(word.removeprefix("--").startswith(("model=", "model.base=")) for word in overrides)


def recorded(folder: Path, overrides: Sequence[str]) -> Resolved[Recipe]:
    """Return the settings a run was made with; they cannot be changed by the way."""
    if overrides:
        raise ConfigError(
            f"{folder} is a run and has its settings; to change {overrides[0]}, give the recipe instead of the folder"
        )
    return load_resolved(Recipe, folder / RECORD)


def help_text(verb: str) -> str:
    """Return usage and every setting the verb reads."""
    entry = VERBS[verb]
    usage = USAGE.format(verb=verb, doc=entry.doc.capitalize(), presets=", ".join(preset_names(PRESETS)))
    return usage + "\n" + describe(Recipe, ("name", "stages", "seed", "precision", "threads", *entry.sections))


def execute(resolved: Resolved[Recipe], verb: str, folder: Path) -> int:
    """Run the stages of a verb in a folder, and say how to go on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import torch

    from ludus.learning.interruption import Interrupted
    from ludus.recipes import chain
    from ludus.recipes.place import Place

    torch.set_num_threads(resolved.settings.threads or 1)
    place = Place(resolved.settings, folder, resolved.origins, resolved.dropped)
    say(f"ludus {verb}: {resolved.settings.name} in {folder}, {resolved.settings.threads} threads")
    for note in (*resolved.notes, *(f"not used: {value}" for value in resolved.dropped)):
        say(note)
    try:
        chain.run(place, verb)
    except Interrupted as stopped:
        say(f"\n{stopped}\ncontinue with: ludus resume {folder}")
        return stopped.code
    except KeyboardInterrupt:
        say(f"\nstopped; what was finished is kept\ncontinue with: ludus resume {folder}")
        return 130
    farewell(place, verb)
    return 0


def farewell(place, verb: str) -> None:
    """Print the results table of a whole run, and how to use what it made."""
    import json

    from ludus.recipes.evaluate import FOLDER, table

    results = place.folder / FOLDER / "results.json"
    if verb == "run" and results.is_file():
        content = json.loads(results.read_text(encoding="utf-8"))
        say("\n" + "\n".join(table(content["questions"], content["stages"])))
    if any((place.model(stage) / "config.json").is_file() for stage in ("pretrain", "sft", "dpo", "grpo")):
        say(f"\nchat with it:      ludus chat {place.folder}")
    if (place.folder / "report.html").is_file():
        say(f"open the report:   {(place.folder / 'report.html').resolve().as_uri()}")
