"""`ludus resume`: go on with a run as it was begun, from the newest checkpoint of the stage it was in."""

from collections.abc import Sequence
from pathlib import Path

from ludus.base.console import say
from ludus.base.errors import ConfigError
from ludus.cli.options import Usage, read

USAGE = Usage(
    "resume",
    "Go on with a run that was stopped",
    (("RUN", "the run's folder, such as runs/quickstart"),),
    1,
    epilogue="The run goes on exactly as if it had never been stopped: same settings, same numbers.\n"
    "To change a setting, repeat the command that began it with the new one; what is up to date is not made again.",
)


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    changes = [word for word in argv if "=" in word and not word.startswith("-") and not Path(word).exists()]
    if changes:
        raise ConfigError(
            f"{changes[0]}: a run is resumed as it was; `ludus run RECIPE {changes[0]}` changes a setting"
        )
    given = read(USAGE, argv)
    if given is None:
        return 0
    from ludus.cli import current, stage
    from ludus.recipes.place import Place

    folder = Path(given.words[0])
    resolved, verb = current.read_run(folder)
    left = current.unfinished(Place(resolved.settings, folder, resolved.origins), verb)
    if not left:
        say(f"everything is up to date in {folder}")
        return 0
    say(f"left to do: {', '.join(left)}")
    return stage.execute(resolved, verb, folder)
