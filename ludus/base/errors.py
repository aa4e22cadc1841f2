"""Every error a user can cause, in one tree.

    LudusError
    ├── ConfigError        unknown key, wrong type, out of range
    ├── DataError          empty, binary or unreadable input
    │   └── TokenizerMismatch   data and model speak different tokens
    ├── CheckpointError    missing, corrupt or foreign checkpoint
    ├── RunError           run folder busy, not writable, or not what was asked for
    │   └── DiskFull
    ├── NetworkError       a download that could not happen
    └── MissingExtra       an optional package is not installed

A message says what happened, what was expected and how to fix it. The command line prints it on one line and exits
with code 2; a traceback is for our mistakes, never for the user's.
"""

import difflib
from collections.abc import Iterable


class LudusError(Exception):
    """A mistake the user can mend; its message is one line, ready to print."""

    exit_code = 2


class ConfigError(LudusError):
    """An unknown key, a wrong type or a value out of range, with where it came from."""


class DataError(LudusError):
    """Input that cannot be used: empty, binary, unreadable, or too small for what was asked."""


class TokenizerMismatch(DataError):
    """Data or a recipe made with another tokenizer than the model's."""


class CheckpointError(LudusError):
    """A checkpoint that is missing, damaged, or belongs to something else."""


class RunError(LudusError):
    """A run folder that is in use, cannot be written, or does not hold what was asked for."""


class DiskFull(RunError):
    """No space left; what was on disk before is untouched."""


class NetworkError(LudusError):
    """A download that failed; the message says how to go on without the network."""


class MissingExtra(LudusError):
    """An optional package is needed; the message names the command that installs it."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is closest to `word`, or None when none is near."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None
