"""A document: a piece of text that knows where it came from and under which licence; and the record of a reading."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Document:
    """Text with its provenance; `id` tells where in its source it stood, `url` is empty where there is none."""

    text: str
    id: str
    source: str
    url: str = ""
    licence: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class Reading:
    """What happened while documents were read, for the report.

    `skipped` counts files passed over by their kind, `broken` the characters that could not be decoded and became
    U+FFFD, by file; `notes` say in words what else was chosen (a limit reached, a revision of a data set).
    """

    skipped: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
