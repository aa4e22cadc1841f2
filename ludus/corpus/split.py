"""Training and validation: which documents are held out.

By the hash of what a document says, so that the choice depends neither on the order of files nor on luck; documents
that resemble each other go to the same side.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ludus.base.errors import DataError
from ludus.corpus.document import Document


@dataclass(frozen=True, slots=True)
class Split:
    """The two sides, and in words how they were made."""

    train: list[Document]
    validation: list[Document]
    method: str


def split(documents: Sequence[Document], fraction: float, seed: int, groups: Sequence[int] | None = None) -> Split:
    """Hold out about `fraction` of all characters; documents of one group stay together.

    Where no group is small enough for that (one long text, say), the longest document is cut at a line end and its
    last part held out. Raises `DataError` when there is too little text to have two sides.
    """
    members: dict[int, list[int]] = {}
    for index in range(len(documents)):
        members.setdefault(groups[index] if groups else index, []).append(index)
    wanted = fraction * sum(len(document.text) for document in documents)
    held: set[int] = set()
    size = 0
    for group in sorted(members.values(), key=lambda group: _order(documents[group[0]], seed)):
        characters = sum(len(documents[index].text) for index in group)
        # A large group is passed over rather than letting it take the validation side far beyond its share.
        if size < wanted and size + characters <= 1.5 * wanted:
            held.update(group)
            size += characters
    if not held:
        return _cut_longest(documents, round(wanted), members)
    train = [document for index, document in enumerate(documents) if index not in held]
    return Split(train, [documents[index] for index in sorted(held)], "whole documents, chosen by hash")


def _order(document: Document, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{document.text}".encode()).digest()


def _cut_longest(documents: Sequence[Document], wanted: int, groups: Mapping[int, list[int]]) -> Split:
    longest = max(range(len(documents)), key=lambda index: len(documents[index].text))
    document = documents[longest]
    if any(longest in group and len(group) > 1 for group in groups.values()):
        raise DataError(
            f"the documents are too alike to hold any out of training ({document.id} and others); "
            "set corpus.near_duplicates=true"
        )
    head, tail = _cut(document.text, max(wanted, 1))
    if not head.strip() or not tail.strip():
        raise DataError(
            f"{len(document.text)} characters are too few for a training and a validation part; give more text"
        )
    train = [*documents[:longest], replace(document, text=head, id=f"{document.id}#head"), *documents[longest + 1 :]]
    where = f"{len(head)} of {len(document.text)} characters"
    return Split(
        train,
        [replace(document, text=tail, id=f"{document.id}#tail")],
        f"document {document.id} cut at a line end after {where}; its rest is the validation part",
    )


def _cut(text: str, wanted: int) -> tuple[str, str]:
    """Cut off about the last `wanted` characters: at the nearest line end, else space, within half as much again."""
    goal = max(1, len(text) - wanted)
    for ending in ("\n", " "):
        places = [text.rfind(ending, 0, goal), text.find(ending, goal, len(text) - 1)]
        near = [place + 1 for place in places if place >= 0 and abs(place + 1 - goal) <= max(wanted // 2, 1)]
        if near:
            cut = min(near, key=lambda place: abs(place - goal))
            return text[:cut], text[cut:]
    return text[:goal], text[goal:]
