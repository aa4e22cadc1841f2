"""Text on a terminal or in a pipe: what a model says is shown, and cannot command the terminal.

On a terminal, control characters in foreign text become pictures of themselves, and notes are dim. In a pipe the
answers alone go to standard output, unchanged, and notes to standard error.
"""

import sys
from collections.abc import Mapping

from ludus.base.console import clean as clean

DIM, BOLD, PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"


class Screen:
    """Where a verb shows things; `terminal` is whether a person sits there."""

    def __init__(self, terminal: bool, colour: bool) -> None:
        self.terminal, self.colour = terminal, colour

    @classmethod
    def of_process(cls, environment: Mapping[str, str]) -> "Screen":
        """Return the screen of this process: a terminal if input and output are one."""
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:  # a character that a terminal cannot show, or no UTF-8 in a pipe, is no crash
                reconfigure(errors="replace")
        terminal = sys.stdin.isatty() and sys.stdout.isatty()
        return cls(terminal, terminal and "NO_COLOR" not in environment)

    def write(self, text: str) -> None:
        """Show text of the model's, at once."""
        sys.stdout.write(clean(text) if self.terminal else text)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Show a remark of ours."""
        if self.terminal:
            print(f"{DIM}{text}{PLAIN}" if self.colour else text, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def bold(self, text: str, *, prompt: bool = False) -> str:
        """Return text that stands out; in a `prompt`, its codes are marked as taking no room."""
        if not self.colour:
            return text
        marks = ("\x01", "\x02") if prompt else ("", "")
        return f"{marks[0]}{BOLD}{marks[1]}{text}{marks[0]}{PLAIN}{marks[1]}"
