"""The entry: find the verb, call its module, and turn every outcome into an exit code and at most a line or two.

Only the verb that was asked for is imported; help and version import neither a schema nor torch. A user's mistake is
its message, without a traceback (LUDUS_TRACEBACK=1 shows one); a traceback is a mistake of ours.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from ludus import __version__
from ludus.base.errors import LudusError, nearest
from ludus.cli.verbs import EXAMPLES, STAGE, VERBS

OPTIONS = ("--help", "--version")
INTERRUPTED, BROKEN_PIPE = 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 2 for the user's mistakes, 130 when interrupted."""
    try:
        code = dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except LudusError as error:
        if os.environ.get("LUDUS_TRACEBACK", "") not in ("", "0"):
            import traceback

            traceback.print_exc()
        complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left; without this the interpreter would complain once more at its own flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def dispatch(argv: list[str]) -> int:
    """Call the module of the verb; raises what it raises."""
    if not argv or argv[0] in ("--help", "-h") or argv == ["help"]:
        print(help_text(colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
        return 0
    if argv[0] in ("--version", "-V"):
        print(f"ludus {__version__}")
        return 0
    if argv[0] == "help":
        argv = [argv[1], "--help"]
    name, *rest = argv
    if name not in VERBS:
        raise LudusError(unknown(name))
    module = importlib.import_module(VERBS[name].module)
    result = module.main(name, rest) if VERBS[name].module == STAGE else module.main(rest)
    return int(result or 0)


def unknown(name: str) -> str:
    """Return what to say about a word that is no verb."""
    if name.startswith("-"):
        near = nearest(name, OPTIONS)
        return f"unknown option {name}; " + (f"did you mean {near}?" if near else f"there are {' and '.join(OPTIONS)}")
    if name.endswith((".yaml", ".yml")) or "=" in name:
        return f"expected a verb before {name}; did you mean `ludus run {name}`?"
    near = nearest(name.lower(), VERBS)
    return f"unknown verb '{name}'; " + (f"did you mean {near}?" if near else "`ludus --help` lists them")


def complain(message: str) -> None:
    """Print each line of a message to standard error, behind our name."""
    for line in message.splitlines():
        print(f"ludus: {line}", file=sys.stderr)


def help_text(colour: bool = False) -> str:
    """Return the help of the whole tool, one line for each verb."""
    bold, light, plain = ("\x1b[1m", "\x1b[36m", "\x1b[0m") if colour else ("", "", "")
    lines = [
        f"{bold}ludus {__version__}{plain} · a school for language models: in goes text, out comes an assistant",
        "",
        "usage: ludus VERB [RECIPE] [key=value ...]",
    ]
    wide = max(map(len, VERBS))
    for group in dict.fromkeys(verb.group for verb in VERBS.values()):
        lines += ["", f"{bold}{group}{plain}"]
        verbs = [(name, verb) for name, verb in VERBS.items() if verb.group == group]
        lines += [f"  {light}{name:<{wide}}{plain}  {verb.doc}" for name, verb in verbs]
    wide = max(len(command) for command, _ in EXAMPLES)
    lines += ["", f"{bold}examples{plain}"]
    lines += [f"  {light}{command:<{wide}}{plain}  {doc}" for command, doc in EXAMPLES]
    lines += ["", "ludus VERB --help shows every setting of a verb, with its default, unit and range."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
