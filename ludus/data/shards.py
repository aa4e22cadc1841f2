"""Token shards on disk: memory-mapped files of bounded size, an index of documents, and whose tokens they are.

Written as a stream: of the tokens only one document is held, of the index 8 bytes a document. The manifest
(`tokens.json`) names the files, the tokenizer by its hash, and how many bytes of text a token spells.
"""

import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ludus.base.errors import DataError, TokenizerMismatch
from ludus.base.files import read_json, write_json, writing
from ludus.data.files import Files, Tokens

FILE_TOKENS = 1 << 28  # in one file: half a gigabyte at two bytes each
_MANIFEST, _INDEX = "tokens.json", "offsets.npy"


@dataclass(frozen=True)
class TokenShards:
    """Documents as tokens: document d is `tokens[offsets[d]:offsets[d + 1]]`."""

    tokens: Tokens
    offsets: np.ndarray
    num_bytes: int  # of the text that the tokens spell

    @property
    def predictions(self) -> int:
        """Count the tokens that are predicted: all but each document's first."""
        return len(self.tokens) - (len(self.offsets) - 1)


def joined(documents: Sequence[np.ndarray], *, num_bytes: int) -> TokenShards:
    """Hold documents as shards in memory."""
    offsets = np.cumsum([0, *(len(document) for document in documents)])
    return TokenShards(np.concatenate(documents), offsets, num_bytes)


class Writer:
    """Append documents to a folder, as uint16, or uint32 when the vocabulary needs it; `close` writes the manifest.

    Write into a folder in progress (`ludus.base.files.folder_in_progress`), and the shards are there whole or not.
    """

    def __init__(self, folder: Path, *, vocabulary: int, tokenizer_hash: str, file_tokens: int = FILE_TOKENS) -> None:
        self.folder, self.tokenizer_hash, self.file_tokens = folder, tokenizer_hash, file_tokens
        self.dtype = np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)
        self.num_bytes = 0
        self._offsets = array("q", [0])
        self._files: dict[str, int] = {}
        self._file: BinaryIO | None = None
        self._room = 0
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def tokens(self) -> int:
        """Count the tokens so far."""
        return self._offsets[-1]

    @property
    def documents(self) -> int:
        """Count the documents so far."""
        return len(self._offsets) - 1

    def append(self, document: np.ndarray, num_bytes: int) -> None:
        """Write one document, which spells `num_bytes` of text."""
        tokens = np.ascontiguousarray(document, dtype=self.dtype)
        with writing(self.folder):
            while len(tokens):
                file, part, tokens = self._next_part(tokens)
                part.tofile(file)
        self._offsets.append(self._offsets[-1] + len(document))
        self.num_bytes += num_bytes

    def _next_part(self, tokens: np.ndarray) -> tuple[BinaryIO, np.ndarray, np.ndarray]:
        """Return the open file, the next one where it was full, what it still takes, and the rest."""
        if self._file is None or not self._room:
            self._end_file()
            name = f"tokens-{len(self._files):05d}.bin"
            self._file, self._files[name], self._room = (self.folder / name).open("wb"), 0, self.file_tokens
        part = tokens[: self._room]
        self._room -= len(part)
        self._files[next(reversed(self._files))] += len(part)
        return self._file, part, tokens[len(part) :]

    def _end_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> dict[str, Any]:
        """Write the index and the manifest, and return what the manifest says. Raises `DataError` without a token."""
        with writing(self.folder):
            self._end_file()
            if not self.tokens:
                raise DataError(
                    f"no tokens to write to {self.folder}; the corpus is empty, set corpus.path to a file with text"
                )
            offsets = np.frombuffer(self._offsets, np.int64)
            return _conclude(self.folder, offsets, self._files, self.dtype.name, self.tokenizer_hash, self.num_bytes)


def _conclude(
    folder: Path, offsets: np.ndarray, files: Mapping[str, int], dtype: str, tokenizer: str, num_bytes: int
) -> dict[str, Any]:
    np.save(folder / _INDEX, offsets, allow_pickle=False)
    tokens = int(offsets[-1])
    about = {"dtype": dtype, "tokenizer": tokenizer, "tokens": tokens, "bytes": num_bytes}
    about |= {"documents": len(offsets) - 1, "bytes_per_token": num_bytes / tokens, "files": dict(files)}
    write_json(folder / _MANIFEST, about)
    return about


def write(
    folder: Path, documents: Iterable[np.ndarray], *, vocabulary: int, tokenizer_hash: str, num_bytes: int
) -> None:
    """Write documents that spell `num_bytes` of text in all. Raises `DataError` when there is no document."""
    writer = Writer(folder, vocabulary=vocabulary, tokenizer_hash=tokenizer_hash)
    for document in documents:
        writer.append(document, 0)
    writer.num_bytes = num_bytes
    writer.close()


def link(folder: Path, parts: Sequence[Path]) -> dict[str, Any]:
    """Make a folder of shards that are those of other folders beside it, one after the other, without a copy."""
    folder.mkdir(parents=True, exist_ok=True)
    abouts = [read_json(part / _MANIFEST) for part in parts]
    files: dict[str, int] = {}
    offsets = [np.zeros(1, np.int64)]
    for part, about in zip(parts, abouts, strict=True):
        route = Path(os.path.relpath(part, folder))
        files |= {(route / name).as_posix(): count for name, count in about["files"].items()}
        offsets.append(np.load(part / _INDEX, allow_pickle=False)[1:] + offsets[-1][-1])
    first = abouts[0]
    whole = np.concatenate(offsets)
    return _conclude(folder, whole, files, first["dtype"], first["tokenizer"], sum(about["bytes"] for about in abouts))


def read(folder: Path, *, tokenizer_hash: str) -> TokenShards:
    """Open shards without loading them.

    Raises:
        TokenizerMismatch: they were written with another tokenizer.
        DataError: the folder holds no shards.
    """
    try:
        about = read_json(folder / _MANIFEST)
    except DataError as problem:
        raise DataError(f"{folder} holds no token shards ({problem}); make them with `ludus tokenizer`") from None
    if about["tokenizer"] != tokenizer_hash:
        raise TokenizerMismatch(
            f"{folder} was made with tokenizer {about['tokenizer'][:8]}, this run uses {tokenizer_hash[:8]}; "
            "make the tokens again with `ludus tokenizer`"
        )
    try:
        files = about.get("files", {"tokens.bin": about["tokens"]})
        parts = [np.memmap(folder / name, about["dtype"], "r", shape=(count,)) for name, count in files.items()]
        offsets = np.asarray(np.load(folder / _INDEX, mmap_mode="r", allow_pickle=False))
        if int(offsets[-1]) != sum(files.values()):
            raise ValueError(f"its index ends at {offsets[-1]}, its files hold {sum(files.values())} tokens")
        return TokenShards(parts[0] if len(parts) == 1 else Files(parts), offsets, about["bytes"])
    except (OSError, ValueError) as problem:  # missing, or shorter than it was
        raise DataError(f"{folder} is damaged ({problem}); make the tokens again with `ludus tokenizer`") from None
