"""Options of the verbs that use a model or look at one: a table of them, read from a command line and shown as help.

The verbs that make things take settings of a recipe instead; those are the schema's business, in `arguments.py`.
"""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from ludus.base.errors import ConfigError, nearest

WIDTH = 110


class Option(NamedTuple):
    """One option. `kind` is what it takes: bool for nothing, or str, int, float; numbers lie in `least`..`most`."""

    name: str
    doc: str
    kind: type = bool
    value: str = ""
    default: Any = None
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    several: bool = False  # may be given more than once; its value is then a list, empty without any


class Usage(NamedTuple):
    """What a verb takes: the words in front, each (NAME, doc), how many of them must be there, and the options."""

    verb: str
    doc: str
    words: tuple[tuple[str, str], ...] = ()
    needed: int = 0
    options: tuple[Option, ...] = ()
    epilogue: str = ""


class Given(NamedTuple):
    """What a command line said; `options` holds every option by its name without dashes, with its default."""

    words: list[str]
    options: dict[str, Any]

    def __getitem__(self, name: Any) -> Any:
        return self.options[name]


HELP = Option("--help", "show this")


def read(usage: Usage, argv: Sequence[str]) -> Given | None:
    """Read a command line; return None after `--help` was shown. Raises ConfigError, one line, for what does not fit.

    A value that begins with two dashes is given as `--option=VALUE`.
    """
    options = {option.name: option for option in (*usage.options, HELP)}
    found: dict[str, Any] = {}
    words: list[str] = []
    waiting = list(argv)
    while waiting:
        word = waiting.pop(0)
        name, equals, text = ("--help" if word == "-h" else word).partition("=")
        if name in options:
            value = value_of(options[name], text if equals else None, waiting)
            found[name] = [*found.get(name, []), value] if options[name].several else value
        elif word.startswith("-") and word != "-":
            raise ConfigError(unknown(usage, name, list(options)))
        else:
            words.append(word)
    if "--help" in found:
        print(help_text(usage))
        return None
    check_words(usage, words)
    absent = {name: [] if option.several else option.default for name, option in options.items()}
    return Given(words, {name[2:]: found.get(name, default) for name, default in absent.items()})


def value_of(option: Option, text: str | None, waiting: list[str]) -> Any:
    """Return an option's value, taken from the words that follow if need be."""
    if option.kind is bool:
        if text is not None:
            raise ConfigError(f"{option.name} takes no value, got '{text}'")
        return True
    if text is None:
        if not waiting or waiting[0].startswith("--"):
            raise ConfigError(f"{option.name} needs a value: {option.name} {option.value}")
        text = waiting.pop(0)
    if option.choices and text not in option.choices:
        near = nearest(text, option.choices)
        known = f"known are {', '.join(option.choices)}" + (f"; did you mean {near}?" if near else "")
        raise ConfigError(f"{option.name} {text}: {known}")
    return text if option.kind is str else number(option, text)


def number(option: Option, text: str) -> float | int:
    """Return a number within the option's range."""
    try:
        value = option.kind(text)
    except ValueError:
        value = None
    least = -float("inf") if option.least is None else option.least
    most = float("inf") if option.most is None else option.most
    if value is None or not least <= value <= most or value in (float("inf"), -float("inf")):
        raise ConfigError(f"{option.name} expects {expectation(option)}, got '{text}'")
    return value


def expectation(option: Option) -> str:
    """Say which numbers an option takes."""
    kind = "a whole number" if option.kind is int else "a number"
    if option.least is not None and option.most is not None:
        return f"{kind} from {option.least:g} to {option.most:g}"
    return kind if option.least is None else f"{kind}, {option.least:g} or more"


def check_words(usage: Usage, words: list[str]) -> None:
    """Raise ConfigError for a word too few or too many."""
    if len(words) < usage.needed:
        name, doc = usage.words[len(words)]
        raise ConfigError(f"{name} is missing: {summary(usage)}; {name} is {doc}")
    if len(words) > len(usage.words):
        extra = words[len(usage.words)]
        name, equals, text = extra.partition("=")
        known = equals and any(option.name == f"--{name}" for option in usage.options)
        raise ConfigError(f"{extra}: unexpected; " + (f"write --{name} {text}" if known else summary(usage)))


def unknown(usage: Usage, name: str, known: list[str]) -> str:
    """Return what to say about an option nobody knows."""
    near = nearest(name, known)
    return f"unknown option {name}; " + (f"did you mean {near}?" if near else f"ludus {usage.verb} --help lists them")


def summary(usage: Usage) -> str:
    """Return the verb as it is typed."""
    words = [name if index < usage.needed else f"[{name}]" for index, (name, _) in enumerate(usage.words)]
    return " ".join(["ludus", usage.verb, *words, *(["[options]"] if usage.options else [])])


def help_text(usage: Usage) -> str:
    """Return the help of a verb: how it is typed, and every word and option with its doc and default."""
    rows = list(usage.words)
    for option in (*usage.options, HELP):
        default = "" if option.default is None else f"; default {option.default}"
        rows.append((f"{option.name} {option.value}".strip(), option.doc + default))
    wide = max(len(left) for left, _ in rows)
    lines = [f"usage: {summary(usage)}", "", f"{usage.doc}."]
    lines += ["", *(line for left, right in rows for line in entry(left, right, wide))]
    return "\n".join(lines + (["", usage.epilogue.strip()] if usage.epilogue else []))


def entry(left: str, right: str, wide: int) -> list[str]:
    """Return one row of the help, wrapped."""
    margin = " " * (wide + 4)
    return textwrap.wrap(right, WIDTH, initial_indent=f"  {left:<{wide}}  ", subsequent_indent=margin)
