"""One mistake in a configuration, and how all of them are told: one line each, in one error.

A line says the key, what is wrong, where it was said and what was probably meant.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ludus.base.config.tree import DEFAULT
from ludus.base.errors import ConfigError

LONGEST_VALUE = 60
PLAIN_TEXT = re.compile(r"[A-Za-z/][A-Za-z0-9_/.+ -]*(?<! )")
NOT_TEXT = {"null", "true", "false"}


@dataclass(frozen=True)
class Problem:
    """What is wrong at a key; `hint` is what to do about it."""

    path: tuple[Any, ...]
    reason: str
    origin: str = DEFAULT
    hint: str = ""

    def line(self) -> str:
        """Return the one line the user reads."""
        key = ".".join(str(part) for part in self.path)
        place = "" if self.origin == DEFAULT else f" (from {self.origin})".replace("(from derived", "(derived")
        return f"{key}: {' '.join(self.reason.split())}{place}".removeprefix(": ") + (
            f"; {self.hint}" if self.hint else ""
        )


def raise_problems(problems: Iterable[Problem]) -> None:
    """Raise one ConfigError with a line for each problem, if there are any."""
    lines = list(dict.fromkeys(problem.line() for problem in problems))
    if lines:
        raise ConfigError("\n".join(lines))


def did_you_mean(word: str | None) -> str:
    """Return the hint for a nearest word."""
    return f"did you mean {word}?" if word else ""


def shown(value: Any) -> str:
    """Return a value as it looks in a message, cut short when long."""
    text = f"'{value}'" if isinstance(value, str) else written(value)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def written(value: Any) -> str:
    """Return a plain value as YAML 1.2 on one line."""
    if isinstance(value, str):
        return value if PLAIN_TEXT.fullmatch(value) and value.lower() not in NOT_TEXT else quoted(value)
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{written(str(key))}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ", ".join(written(item) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def quoted(text: str) -> str:
    """Return text in double quotes, with every character that cannot be printed escaped."""
    letters = [c if c.isprintable() else f"\\U{ord(c):08x}" for c in text.replace("\\", r"\\").replace('"', r"\"")]
    return f'"{"".join(letters)}"'
