"""Token shards on disk: one memory-mapped array, an index of documents, and whose tokens they are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ludus.base.errors import DataError, TokenizerMismatch
from ludus.base.files import read_json, write_json
from ludus.data.files import Tokens


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


def write(
    folder: Path, documents: Iterable[np.ndarray], *, vocabulary: int, tokenizer_hash: str, num_bytes: int
) -> None:
    """Write documents as uint16, or uint32 when the vocabulary needs it.

    Raises:
        DataError: there is no document.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.uint16 if vocabulary <= 1 << 16 else np.uint32
    offsets = [0]
    with (folder / "tokens.bin").open("wb") as file:
        for document in documents:
            file.write(np.asarray(document, dtype=dtype).tobytes())
            offsets.append(offsets[-1] + len(document))
    if offsets[-1] == 0:
        raise DataError(f"no tokens to write to {folder}; the corpus is empty, set corpus.path to a file with text")
    np.save(folder / "offsets.npy", np.array(offsets, dtype=np.int64), allow_pickle=False)
    about = {"dtype": np.dtype(dtype).name, "tokenizer": tokenizer_hash, "tokens": offsets[-1], "bytes": num_bytes}
    write_json(
        folder / "tokens.json", about | {"documents": len(offsets) - 1, "bytes_per_token": num_bytes / offsets[-1]}
    )


def read(folder: Path, *, tokenizer_hash: str) -> TokenShards:
    """Open shards without loading them.

    Raises:
        TokenizerMismatch: they were written with another tokenizer.
        DataError: the folder holds no shards.
    """
    try:
        about = read_json(folder / "tokens.json")
    except DataError as problem:
        raise DataError(f"{folder} holds no token shards ({problem}); make them with `ludus tokenizer`") from None
    if about["tokenizer"] != tokenizer_hash:
        raise TokenizerMismatch(
            f"{folder} was made with tokenizer {about['tokenizer'][:8]}, this run uses {tokenizer_hash[:8]}; "
            "make the tokens again with `ludus tokenizer`"
        )
    try:
        tokens = np.memmap(folder / "tokens.bin", dtype=about["dtype"], mode="r", shape=(about["tokens"],))
        return TokenShards(tokens, np.load(folder / "offsets.npy", allow_pickle=False), about["bytes"])
    except (OSError, ValueError) as problem:  # missing, or shorter than it was
        raise DataError(f"{folder} is damaged ({problem}); make the tokens again with `ludus tokenizer`") from None
