"""`ludus report`: one page about a run, or one that compares several."""

from collections.abc import Sequence
from pathlib import Path

from ludus.base.console import say
from ludus.base.errors import RunError
from ludus.cli import stage
from ludus.cli.arguments import parse_recipe_arguments

PAGE = "comparison.html"
FLAGS = {**stage.FLAGS, "--output": True}
HELP = """usage: ludus report RUN [RUN ...] [--output FILE]

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
    words = [word for word in argv if not word.startswith("-") and "=" not in word]
    if "--output" in argv:
        words.remove(argv[argv.index("--output") + 1]) if argv.index("--output") + 1 < len(argv) else None
    if len(words) < 2:
        return stage.main("report", argv)
    arguments = parse_recipe_arguments([word for word in argv if word not in words[1:]], FLAGS)
    from ludus.cli.current import why_no_run
    from ludus.evaluation.report import write_comparison

    folders = [Path(word) for word in words]
    for folder in folders:
        if not (folder / "recipe.json").is_file():
            raise RunError(f"{folder} {why_no_run(folder)}")
    title = " and ".join(folder.name for folder in folders) if len(folders) < 4 else f"{len(folders)} runs"
    page = write_comparison(folders, Path(str(arguments.flags.get("--output") or PAGE)), title)
    say(f"compare them:  {page.resolve().as_uri()}")
    return 0
