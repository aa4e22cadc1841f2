"""`ludus report`: one page about a run, or one that compares several."""

from collections.abc import Sequence
from pathlib import Path

from ludus.base.console import say
from ludus.base.errors import ConfigError, RunError
from ludus.cli import stage
from ludus.cli.arguments import parse_recipe_arguments

PAGE = "comparison.html"
FLAGS = {**stage.FLAGS, "--output": True}
HELP = """usage: ludus report RUN
       ludus report RUN RUN ... [--output FILE]

One page about a run: curves, scores, samples. With several runs, one page that compares them: the settings that
differ, final losses, curves together, samples side by side.

  ludus report runs/quickstart
  ludus report runs/a runs/b --output comparison.html
"""


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    if "--help" in argv or "-h" in argv:
        say(HELP.rstrip())
        return 0
    runs, rest = taken_apart(argv)
    if len(runs) > 1:
        return compare([Path(run) for run in runs], parse_recipe_arguments(rest, FLAGS).flags.get("--output"))
    if any(word.partition("=")[0] == "--output" for word in rest):
        raise ConfigError("--output is for a page over several runs; that of one run is its report.html")
    return stage.main("report", argv)


def taken_apart(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words that name runs, and the flags and settings with their values."""
    runs: list[str] = []
    rest: list[str] = []
    for before, word in zip(["", *argv], argv, strict=False):
        belongs_to_a_flag = FLAGS.get(before, False)
        (rest if belongs_to_a_flag or word.startswith("-") or "=" in word else runs).append(word)
    return runs, rest


def compare(folders: Sequence[Path], output: str | bool | None) -> int:
    """Write the page over several runs. Raises RunError for a folder that is none."""
    from ludus.cli.current import why_no_run
    from ludus.evaluation.report import write_comparison

    for folder in folders:
        if not (folder / "recipe.json").is_file():
            raise RunError(f"{folder} {why_no_run(folder)}")
    title = " and ".join(folder.name for folder in folders) if len(folders) < 4 else f"{len(folders)} runs"
    page = write_comparison(folders, Path(str(output or PAGE)), title)
    say(f"compare them:  {page.resolve().as_uri()}")
    return 0
