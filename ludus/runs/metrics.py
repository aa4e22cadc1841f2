"""The log of a run: one JSON record per line, appended as training goes, cut back when it resumes.

The same log serves metrics and samples; which keys they hold is their writers' business. Numbers read back exactly.
A process that dies while writing leaves a torn last line: no reader sees it, and the next writer removes it.
"""

import json
import os
from pathlib import Path
from typing import Any

from ludus.base.errors import DataError
from ludus.base.files import atomic_write, make_folder, writing


class MetricsLog:
    """Appends records to one JSON Lines file, which need not exist yet."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._whole = False  # whether the file is known to end with a whole line

    def append(self, record: dict[str, Any]) -> None:
        """Append one record as one line, seen at once by readers; raise DiskFull or RunError when it cannot be."""
        line = json.dumps(record).encode() + b"\n"
        with writing(self.path):
            if not self._whole:
                make_folder(self.path.parent)
                self._remove_torn_line()
            self._whole = False  # until the line is written: a full disk may take half of it
            with self.path.open("ab", buffering=0) as file:
                rest = memoryview(line)
                while rest:
                    rest = rest[file.write(rest) :]
            self._whole = True

    def sync(self) -> None:
        """Make what was appended survive a power cut; a checkpoint that claims a step comes after this."""
        if self.path.exists():
            with writing(self.path), self.path.open("rb") as file:
                os.fsync(file.fileno())

    def truncate(self, step: int) -> int:
        """Drop every record of `step` or later, as a run that resumes at `step` must; return how many were dropped."""
        if not self.path.exists():
            return 0
        lines, records = _lines(self.path), read(self.path)
        kept = [line for line, record in zip(lines, records, strict=True) if record.get("step", -1) < step]
        atomic_write(self.path, b"".join(kept))
        self._whole = True
        return len(lines) - len(kept)

    def _remove_torn_line(self) -> None:
        if self.path.exists():
            with self.path.open("r+b") as file:
                file.truncate(_end_of_whole_lines(file.read()))


def read(path: Path | str) -> list[dict[str, Any]]:
    """Return the records of a log, without a torn last line; an absent log is an empty one.

    Raise DataError, naming the line, for anything else that is not a record.
    """
    path = Path(path)
    return [_record(path, number, line) for number, line in enumerate(_lines(path), start=1)]


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise DataError(f"{path}:{number} is damaged: expected one JSON record; remove that line to go on without it")
    return record


def _lines(path: Path) -> list[bytes]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}") from None
    return content[: _end_of_whole_lines(content)].splitlines(keepends=True)


def _end_of_whole_lines(content: bytes) -> int:
    return content.rfind(b"\n") + 1
