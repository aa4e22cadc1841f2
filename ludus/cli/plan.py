"""`ludus plan`: what a run will need, before it runs; and whether to train from scratch or to fine-tune."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ludus.base.config import bare_keys, resolve
from ludus.base.console import say
from ludus.base.errors import ConfigError
from ludus.cli.arguments import parse_recipe_arguments
from ludus.cli.stage import PRESETS, RECORD, recorded
from ludus.model.settings import TO_BE_NAMED
from ludus.recipes.place import Place
from ludus.recipes.schema import Recipe

FLAGS = {"--help": False, "--json": False, "--quick": False, "--advise": False, "--folder": True}
OWN = ("device", "budget", "price", "text", "goal")
UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
PRELOAD = ("ludus.cli.stage", "ludus.recipes.chain")  # what `ludus pretrain` has loaded once it trains
HELP = """usage: ludus plan [RECIPE] [key=value ...] [device=NAME] [price=X] [text=SIZE] [--quick] [--json]
       ludus plan --advise text=SIZE [budget=X] [device=NAME] [goal="..."] [--json]

Say what a recipe's pretraining, or its fine-tuning of a model that is brought, will need before it runs: parameters,
operations, tokens, memory by part, time, cost, the largest micro-batch that fits, and what to change if nothing does.
Nothing needs to be built; what is not known yet is estimated, and said to be. The device is this machine unless named,
and is measured with a few steps in seconds; --quick only calculates.

With --advise: train from scratch or fine-tune, for this much text, this budget and this hardware, with the reasons.

  ludus plan shakespeare
  ludus plan quickstart model.depth=12 pretrain.rows=8 device=rtx4090
  ludus plan qlora-instruct model.family=llama model.size=8B device=rtx4090
  ludus plan --advise text=200MB budget=50 device=rtx4090 goal="chat about our manuals"

device=NAME  this (the default), {devices}
price=X      dollars an hour, instead of the table's
text=SIZE    bytes of text, such as 200MB or 1.5GB, instead of what the recipe names
budget=X     dollars; hours where the device costs nothing
"""


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    arguments = parse_recipe_arguments(argv, FLAGS, (*bare_keys(Recipe, "pretrain"), *bare_keys(Recipe, "sft"), *OWN))
    if "--help" in arguments.flags:
        from ludus.planning.devices import table

        say(HELP.format(devices=", ".join(table())).rstrip())
        return 0
    own, overrides = take_own(arguments.overrides)
    if "--advise" in arguments.flags:
        return advise(own, as_json="--json" in arguments.flags)
    if "goal" in own or "budget" in own:
        raise ConfigError(f"{'goal' if 'goal' in own else 'budget'}= is for the first question; add --advise to ask it")
    return plan(arguments.recipe, overrides, own, arguments.flags)


def take_own(overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Part what is the plan's own from settings of the recipe."""
    own = {key: value for key, _, value in (word.partition("=") for word in overrides) if key in OWN}
    return own, [word for word in overrides if word.partition("=")[0] not in OWN]


def plan(recipe: str | None, overrides: Sequence[str], own: dict[str, str], flags: dict[str, Any]) -> int:
    """Plan a recipe and print it."""
    run = Path(recipe) if recipe and (Path(recipe) / RECORD).is_file() else None
    settings, stage = settings_of(recipe, overrides, run)
    from ludus.planning import plan as planning
    from ludus.planning import render

    folder = Path(str(flags.get("--folder") or run or Path("runs") / settings.name))
    quiet = "--json" in flags
    found = planning.make(
        settings,
        folder,
        device_of(own, settings.threads or 1),
        base=brought(settings, folder) if stage == "sft" else None,
        stage=stage,
        threads=settings.threads or 1,
        text_bytes=round(size_of(own["text"], "text")) if "text" in own else None,
        measure="--quick" not in flags,
        preload=PRELOAD,
        say=(lambda _: None) if quiet else say,
    )
    if quiet:
        say(json.dumps(found.as_json(), indent=2))
    else:
        say(f"ludus plan: {settings.name}\n{render.plan(found)}")
    return 0


def settings_of(recipe: str | None, overrides: Sequence[str], run: Path | None) -> tuple[Recipe, str]:
    """Return the recipe, and the stage to plan: pretraining, or fine-tuning where a model is brought."""
    if run:
        settings = recorded(run, overrides).settings
        return settings, stage_of(settings)
    problem: ConfigError | None = None
    for section in ("pretrain", "sft"):  # whose keys may stand without its name
        try:
            settings = resolve(
                Recipe, recipe=recipe, presets=PRESETS, environment=os.environ, overrides=overrides, section=section
            ).settings
        except ConfigError as found:
            problem = problem or found
            continue
        if stage_of(settings) == section:
            return settings, section
    assert problem is not None
    raise problem


def brought(settings: Recipe, folder: Path) -> Path | None:
    """Return the model that is brought; None where a shape stands for it."""
    place = Place(settings, folder)
    return place.base("sft") if place.brought("sft") not in (None, TO_BE_NAMED) else None


def stage_of(settings: Recipe) -> str:
    """Name the stage that a plan is for."""
    tuned = settings.sft.base or settings.model.base or "pretrain" not in settings.stages
    return "sft" if tuned and "sft" in settings.stages else "pretrain"


def advise(own: dict[str, str], *, as_json: bool) -> int:
    """Answer the first question."""
    if "text" not in own:
        raise ConfigError('text= is missing: ludus plan --advise text=200MB budget=50 device=rtx4090 goal="..."')
    from ludus.planning import render, start

    found = start.advise(
        size_of(own["text"], "text"),
        device_of(own, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1),
        budget=size_of(own["budget"], "budget") if "budget" in own else None,
        goal=own.get("goal", ""),
    )
    say(json.dumps(found.as_json(), indent=2) if as_json else render.start(found))
    return 0


def device_of(own: dict[str, str], threads: int) -> Any:
    """Return the device that was named, this machine by default, at the price that was given."""
    from ludus.planning import devices
    from ludus.planning.machine import this_machine

    name = own.get("device", devices.THIS)
    device = this_machine(threads)[0] if name == devices.THIS else devices.find(name)
    return device.priced(size_of(own["price"], "price") if "price" in own else None)


def size_of(text: str, key: str) -> float:
    """Read an amount such as 200MB, 1.5G or 50. Raises ConfigError for anything else."""
    found = re.fullmatch(r"\$?\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([kmgt]?)i?b?", text.strip().lower().replace("_", ""))
    if not found or (float(found[1]) <= 0 and key != "price"):
        raise ConfigError(f"{key}={text}: expected an amount above 0, such as 200MB, 1.5GB or 50")
    return float(found[1]) * UNITS[found[2]]
