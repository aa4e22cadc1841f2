"""The grid of a sweep: settings with several values on the command line, and a folder's name for each combination."""

import re
from collections.abc import Mapping, Sequence
from itertools import product

from ludus.base.errors import ConfigError
from ludus.base.files import sha256_text

OPENING, CLOSING, QUOTES = "[{(", "]})", "\"'"
LONGEST_NAME = 120  # characters of a folder's name, well within what file systems take
FIXED = ("name", "stages")  # settings that are the same for the whole sweep

Cell = Mapping[str, str]


def axes(overrides: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the settings that have several values, with those, and the overrides that hold for every cell.

    Values are separated by commas; what stands in brackets, braces or quotes is one value. Raises ConfigError for an
    empty value, one that is there twice, a setting given twice, one that cannot vary, or when nothing does.
    """
    found: dict[str, list[str]] = {}
    fixed: list[str] = []
    for override in overrides:
        key, _, text = override.partition("=")
        values = split(text)
        if key in found:
            raise ConfigError(f"{key} is given twice; give all its values at once, as in {key}=1,2,3")
        if len(values) == 1:
            fixed.append(override)
            continue
        check(key, values)
        found[key] = values
    if not found:
        raise ConfigError("nothing to sweep: give a setting several values, as in model.depth=2,4,6")
    return found, fixed


def check(key: str, values: Sequence[str]) -> None:
    """Raise ConfigError unless these can be the values of an axis."""
    if key in FIXED:
        raise ConfigError(f"{key} is the same for a whole sweep; give it one value (a list in brackets is one)")
    if "" in values:
        raise ConfigError(f"{key}: a value is empty; values are separated by single commas, as in {key}=1,2,3")
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ConfigError(f"{key}: the value {twice} is given twice")


def split(text: str) -> list[str]:
    """Split at the commas that stand in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in QUOTES:
            quote = letter
        elif letter in OPENING:
            depth += 1
        elif letter in CLOSING:
            depth -= 1
        if letter == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def cells(found: Mapping[str, Sequence[str]]) -> list[Cell]:
    """Return every combination of values, the last setting varying fastest."""
    return [dict(zip(found, values, strict=True)) for values in product(*found.values())]


def names(grid: Sequence[Cell]) -> list[str]:
    """Return a folder's name for each cell, such as `depth=2,context=32`; no two are the same on any file system."""
    keys = list(grid[0])
    last = [key.rpartition(".")[2] for key in keys]
    short = {key: end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)}
    plain = [",".join(f"{short[key]}={safe(value)}" for key, value in cell.items()) for cell in grid]
    folded = [name.lower() for name in plain]
    return [
        name if folded.count(name.lower()) == 1 and len(name) <= LONGEST_NAME else told_apart(name, cell)
        for name, cell in zip(plain, grid, strict=True)
    ]


def told_apart(name: str, cell: Cell) -> str:
    """Return a name that is cut where it is long, and ends in a hash of what it stands for."""
    return f"{name[: LONGEST_NAME - 9]}-{sha256_text(repr(sorted(cell.items())))[:8]}"


def safe(value: str) -> str:
    """Return a value without what a file system or a shell would mind."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", value).strip("-") or "x"
