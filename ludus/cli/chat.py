"""`ludus chat`: talk with a model in the terminal, or through a pipe, a line a message."""

import os
from collections.abc import Sequence

from ludus.cli.options import Option, Usage, read

MODEL = (
    "MODEL",
    "a run's folder such as runs/quickstart, a stage's in it, any model's or adapter's, a llama2.c file, or a name on "
    "the hub such as openai-community/gpt2",
)
STORED = "as-stored"
DTYPE = Option("--dtype", "of the weights in memory", str, "DTYPE", "float32", choices=("float32", "bfloat16", STORED))
LOADING = (
    Option(
        "--adapter", "an adapter for it, to switch to; may be given several times", str, "[NAME=]FOLDER", several=True
    ),
    Option("--base", "where the model under an adapter lies now; without it, where the adapter says", str, "MODEL"),
    DTYPE,
    Option(
        "--quantise",
        "the linear layers while loading: none, nf4 or int8; without it, an adapter's base as it was while it learned",
        str,
        "KIND",
        choices=("none", "nf4", "int8"),
    ),
)
TEMPERATURE = Option(
    "--temperature", "how freely to draw; 0 takes the likeliest token each time", float, "X", 0.0, 0, 10
)
SAMPLING = (
    Option("--top-k", "draw among the K likeliest tokens; 0 for all", int, "K", 0, 0),
    Option("--top-p", "draw among the likeliest tokens that together have this probability", float, "P", 1.0, 0, 1),
)
LENGTH = Option("--max-new-tokens", "longest answer, as far as the context has room", int, "N", 256, 1)
LARGEST_SEED = 2**63 - 1
USAGE = Usage(
    "chat",
    "Talk with a model",
    (MODEL,),
    1,
    (
        TEMPERATURE,
        *SAMPLING,
        LENGTH,
        Option("--system", "a system message", str, "TEXT"),
        Option("--seed", "of what is drawn; without it, another each time", int, "S", None, 0, LARGEST_SEED),
        *LOADING,
    ),
    "In a pipe each line is a message; answers go to standard output, everything else to standard error.",
)


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    given = read(USAGE, argv)
    if given is None:
        return 0
    from ludus.cli import talk
    from ludus.cli.screen import Screen

    screen = Screen.of_process(os.environ)
    conversation = talk.begin(given)
    return talk.at_terminal(conversation, screen) if screen.terminal else talk.in_pipe(conversation, screen)
