"""Documents put aside until it is known where they go: in memory while they are few, then on the disk."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from ludus.corpus.document import Document
from ludus.corpus.shards import Writer, read

_HELD_CHARACTERS = 64_000_000
_NAME = "shelf"


class Shelf:
    """Append documents, then read them back in order, more than once if need be; `clear` when done.

    `folder` is made where there are too many to hold, and gone again when they are cleared.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.documents = self.characters = 0
        self._held: list[Document] = []
        self._disk: Writer | None = None

    def append(self, document: Document) -> None:
        """Put a document after the others."""
        self.documents += 1
        self.characters += len(document.text)
        if self._disk is None and self.characters > _HELD_CHARACTERS:
            self.folder.mkdir(parents=True)
            self._disk = Writer(self.folder, _NAME)
            for each in self._held:
                self._disk.append(each)
            self._held = []
        if self._disk is None:
            self._held.append(document)
        else:
            self._disk.append(document)

    def close(self) -> None:
        """End the appending."""
        if self._disk is not None:
            self._disk.close()

    def __len__(self) -> int:
        return self.documents

    def __iter__(self) -> Iterator[Document]:
        yield from self._held if self._disk is None else read(self.folder, _NAME)

    def clear(self) -> None:
        """Remove what lies on the disk."""
        self._held = []
        shutil.rmtree(self.folder, ignore_errors=True)
