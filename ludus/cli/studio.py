"""`ludus studio`: watch runs and chat in the browser; an OpenAI-compatible server on this machine."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ludus.base.errors import ConfigError, MissingExtra
from ludus.cli.options import Option, Usage, read

USAGE = Usage(
    "studio",
    "Watch runs and chat in the browser; an OpenAI-compatible server on this machine",
    (("MODEL", "the model that answers when none is asked for; a run, a stage or any model's folder"),),
    0,
    (
        Option("--port", "0 takes a free one", int, "N", 8765, 0, 65535),
        Option("--folder", "the runs", str, "FOLDER", "runs"),
        Option("--model", "the same as MODEL", str, "MODEL"),
        Option("--host", "an address to listen on; beyond this machine only with a token", str, "HOST", "127.0.0.1"),
    ),
    "For programs the base URL of OpenAI's API is http://127.0.0.1:8765/v1. With a secret in LUDUS_STUDIO_TOKEN,\n"
    "programs bring it as their API key and people as a password.",
)


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    given = read(USAGE, argv)
    if given is None:
        return 0
    if given.words and given["model"]:
        raise ConfigError(f"the model is given twice, as {given.words[0]} and as --model {given['model']}; give one")
    missing = [package for package in ("starlette", "uvicorn") if find_spec(package) is None]
    if missing:
        raise MissingExtra(f"the studio needs {' and '.join(missing)}; install with: pip install 'ludus[studio]'")
    from ludus.studio.server import TOKEN_VARIABLE, serve

    model = given["model"] or (given.words[0] if given.words else None)
    token = os.environ.get(TOKEN_VARIABLE) or None
    serve(Path(given["folder"]), Path(model) if model else None, given["host"], given["port"], token)
    return 0
