"""`ludus compare`: two models with the same prompts and seeds, side by side, and what the second has forgotten."""

from collections.abc import Sequence
from pathlib import Path

from ludus.base.console import say
from ludus.base.errors import ConfigError, DataError
from ludus.cli.options import Option, Usage, read

USAGE = Usage(
    "compare",
    "Ask two models the same with the same seeds, and measure what the second has forgotten",
    (
        ("BEFORE", "a model's folder, or a run's"),
        ("AFTER", "another, or the folder of an adapter"),
        ("PROMPTS", "conversations as JSON Lines, whose last answers count as good ones; or a .txt, a prompt a line"),
    ),
    3,
    (
        Option("--prompts", "at most so many of them, evenly spread", int, "N", 16, 1),
        Option("--max-new-tokens", "longest answer", int, "N", 128, 1),
        Option("--temperature", "how freely to draw; 0 takes the likeliest token each time", float, "X", 0.7, 0, 10),
        Option("--seeds", "each prompt is answered once with each", str, "A,B,...", "0"),
        Option("--context", "tokens seen at once; without it, as many as both models know", int, "N", None, 8),
        Option("--text", "general text to measure forgetting on, instead of Python's documentation", str, "PATH"),
        Option("--bytes", "at most so much of it", int, "N", 100_000, 1),
        Option("--output", "folder for compare.jsonl, compare.json and compare.html", str, "FOLDER", "comparison"),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    given = read(USAGE, argv)
    if given is None:
        return 0
    from ludus.evaluation import side_by_side
    from ludus.evaluation.compare_settings import CompareSettings
    from ludus.recipes.brought import context_of
    from ludus.recipes.compare import compared, side

    settings = CompareSettings(
        prompts=given["prompts"],
        max_new_tokens=given["max-new-tokens"],
        temperature=given["temperature"],
        seeds=whole_numbers("--seeds", given["seeds"]),
        text=given["text"],
        bytes=given["bytes"],
    )
    names = given.words[:2]
    short = [Path(name).name or name for name in names]
    shown = names if short[0] == short[1] else short
    before, after = (side(name, name=called) for name, called in zip(names, shown, strict=True))
    context = given["context"] or min(map(context_of, names))
    found = compared(before, after, prompts(Path(given.words[2])), settings, context=context)
    found.facts["title"] = f"{shown[0]} and {shown[1]}"
    written = side_by_side.write(found, Path(given["output"]))
    for line in side_by_side.lines(side_by_side.summary(found)):
        say(line)
    say(f"see: {written[-1].resolve().as_uri()}")
    return 0


def prompts(file: Path) -> list:
    """Read what to ask."""
    from ludus.evaluation.held_out import Asked, asked
    from ludus.recipes.brought import conversations

    if file.suffix == ".txt":
        try:
            lines = file.expanduser().read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file} cannot be read as text: {error}") from None
        return [Asked(({"role": "user", "content": line},)) for line in lines if line.strip()]
    return [asked(chat.messages) for chat in conversations(file)]


def whole_numbers(name: str, text: str) -> list[int]:
    """Read numbers that are separated by commas."""
    try:
        return list(dict.fromkeys(int(word) for word in text.split(",")))
    except ValueError:
        raise ConfigError(f"{name} expects whole numbers, as in {name} 0,1,2; got '{text}'") from None
