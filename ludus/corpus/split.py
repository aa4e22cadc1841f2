"""Training and validation: which documents are held out.

By the hash of what a document says, so that the choice depends neither on the order of files nor on luck; documents
that resemble each other go to the same side. Only hashes and lengths are held: 16 bytes a document.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from ludus.base.errors import DataError
from ludus.corpus.document import Document

Side = Literal["train", "validation"]


@dataclass
class Entries:
    """What the choice is made from: for each document a hash that decides its turn, and its length."""

    seed: int
    turns: array = field(default_factory=lambda: array("Q"))
    characters: array = field(default_factory=lambda: array("q"))

    def add(self, document: Document) -> None:
        """Enter the next document."""
        digest = hashlib.sha256(f"{self.seed}\n{document.text}".encode("utf-8", "replace")).digest()
        self.turns.append(int.from_bytes(digest[:8], "big"))
        self.characters.append(len(document.text))

    def __len__(self) -> int:
        return len(self.turns)


@dataclass(frozen=True)
class Split:
    """Who is held out: whole documents, or the end of one that is cut; and in words how that was decided."""

    method: str
    held: frozenset[int] = frozenset()
    cut: tuple[int, int] | None = None  # document, and where in its text

    def sides(self, documents: Iterable[Document]) -> Iterator[tuple[Side, Document]]:
        """Yield every document with its side; one that is cut comes twice."""
        for number, document in enumerate(documents):
            if self.cut and number == self.cut[0]:
                yield "train", replace(document, text=document.text[: self.cut[1]], id=f"{document.id}#head")
                yield "validation", replace(document, text=document.text[self.cut[1] :], id=f"{document.id}#tail")
            else:
                yield "validation" if number in self.held else "train", document


def split(
    entries: Entries,
    documents: Iterable[Document],
    fraction: float,
    *,
    groups: Sequence[int] | None = None,
    exact: bool = False,
) -> Split:
    """Hold out about `fraction` of all characters; documents of one group stay together.

    Where no group is small enough for that (one long text, say), the longest document is cut at a line end and its
    last part held out: with `exact`, at the very place. `documents` are read again to find that place. Raises
    `DataError` when there is too little text to have two sides.
    """
    total = sum(entries.characters)
    held = _held(entries, fraction * total, groups)
    if held:
        return Split("whole documents, chosen by hash", frozenset(held))
    longest = max(range(len(entries)), key=lambda number: entries.characters[number])
    document = next(document for number, document in enumerate(documents) if number == longest)
    if groups and groups.count(groups[longest]) > 1:
        raise DataError(
            f"the documents are too alike to hold any out of training ({document.id} and others); "
            "set corpus.near_duplicates=true"
        )
    length = len(document.text)
    wanted = max(length - int(length * (1 - fraction)) if len(entries) == 1 else round(fraction * total), 1)
    place = max(1, length - wanted) if exact else _place(document.text, wanted)
    if not document.text[:place].strip() or not document.text[place:].strip():
        raise DataError(f"{length} characters are too few for a training and a validation part; give more text")
    where = f"after {place} of {length} characters; its rest is the validation part"
    return Split(f"document {document.id} cut {'' if exact else 'at a line end '}{where}", cut=(longest, place))


def _held(entries: Entries, wanted: float, groups: Sequence[int] | None) -> list[int]:
    """Take groups in the order of their hashes until there is enough."""
    members: dict[int, list[int]] = {}
    for number, group in enumerate(groups or ()):
        members.setdefault(group, []).append(number)
    firsts = np.array([numbers[0] for numbers in members.values()]) if groups else np.arange(len(entries))
    groups_of = {numbers[0]: numbers for numbers in members.values()}
    turns = np.frombuffer(entries.turns, np.uint64)[firsts]
    held: list[int] = []
    size = 0
    for first in firsts[np.argsort(turns, kind="stable")].tolist():
        if size >= wanted:
            break
        numbers = groups_of.get(first, [first])
        characters = sum(entries.characters[number] for number in numbers)
        # A large group is passed over rather than letting it take the validation side far beyond its share.
        if size + characters <= 1.5 * wanted:
            held += numbers
            size += characters
    return held


def _place(text: str, wanted: int) -> int:
    """Return where about the last `wanted` characters begin: at a line end, else a space, within half as much again."""
    goal = max(1, len(text) - wanted)
    for ending in ("\n", " "):
        places = [text.rfind(ending, 0, goal), text.find(ending, goal, len(text) - 1)]
        near = [place + 1 for place in places if place >= 0 and abs(place + 1 - goal) <= max(wanted // 2, 1)]
        if near:
            return min(near, key=lambda place: abs(place - goal))
    return goal
