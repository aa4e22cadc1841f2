"""Take a verb's arguments apart: a recipe, overrides of its settings, and the verb's own flags.

`ludus pretrain my.yaml model.depth=6 --optimizer.kind muon --folder runs/x`: the first bare word is the recipe,
a flag is what the caller says is one, everything else sets a key. Whether a dotted key exists is the schema's business.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ludus.base.errors import ConfigError, nearest

FLAGS: Mapping[str, bool] = {"--help": False, "--print-config": False, "--folder": True}
SHORT = {"-h": "--help"}
ALWAYS_A_KEY = "preset"


class Arguments(NamedTuple):
    """The parts: overrides as `key=value`, and flags by name with their value, True for one that takes none."""

    recipe: str | None
    overrides: list[str]
    flags: dict[str, str | bool]


def parse_recipe_arguments(
    argv: Sequence[str], flags: Mapping[str, bool] = FLAGS, keys: Collection[str] = ()
) -> Arguments:
    """Split a command line.

    `flags` says of each flag whether it takes a value. `keys` are settings that `--key` may name without a dot: fields
    of the schema and of the verb's own section. Raises ConfigError for an unknown flag, with the nearest.
    """
    recipe: str | None = None
    overrides: list[str] = []
    found: dict[str, str | bool] = {}
    waiting = list(argv)
    while waiting:
        word = waiting.pop(0)
        name, equals, text = SHORT.get(word, word).partition("=")
        if name in flags:
            found[name] = flag_value(name, flags[name], text if equals else None, waiting)
        elif name.startswith("--") and is_key(name, keys):
            overrides.append(f"{name[2:]}={text if equals else next_value(waiting)}")
        elif name.startswith("-"):
            raise ConfigError(unknown_option(name, flags, keys))
        elif equals:
            overrides.append(word)
        elif recipe is None:
            recipe = word
        else:
            raise ConfigError(f"{word}: unexpected; the recipe is {recipe}, and a setting is written key=value")
    return Arguments(recipe, overrides, found)


def flag_value(name: str, takes_value: bool, text: str | None, waiting: list[str]) -> str | bool:
    """Return the value of a flag, taken from the words that follow if need be."""
    if not takes_value:
        if text is not None:
            raise ConfigError(f"{name} takes no value, got '{text}'")
        return True
    if text is None:
        if not waiting or waiting[0].startswith("--"):
            raise ConfigError(f"{name} needs a value, as in {name} VALUE")
        text = waiting.pop(0)
    return text


def next_value(waiting: list[str]) -> str:
    """Return the word that belongs to `--key`; a key alone means true."""
    alone = not waiting or waiting[0].startswith("--") or waiting[0] in SHORT
    return "true" if alone else waiting.pop(0)


def is_key(name: str, keys: Collection[str]) -> bool:
    """Tell whether `--name` sets a key: it has a dot, or is one of the keys."""
    key = name[2:]
    return "." in key or key == ALWAYS_A_KEY or key.replace("-", "_") in keys


def unknown_option(name: str, flags: Mapping[str, bool], keys: Collection[str]) -> str:
    """Return what to say about an option nobody knows."""
    known = [*flags, *(f"--{key}" for key in keys)]
    near = nearest(name, known)
    return f"unknown option {name}; " + (f"did you mean {near}?" if near else f"there are {', '.join(flags)}")
