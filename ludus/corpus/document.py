"""A document: a piece of text that knows where it came from and under which licence."""

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
