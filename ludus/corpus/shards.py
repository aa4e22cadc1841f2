"""Documents on disk: Parquet shards that any tool for data frames opens."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pyarrow.parquet

from ludus.base.errors import DataError
from ludus.base.files import writing
from ludus.corpus.document import Document

COLUMNS = ("text", "id", "source", "url", "licence", "metadata")
_SCHEMA = pyarrow.schema([(name, pyarrow.string()) for name in COLUMNS])
_SHARD_CHARACTERS = 64_000_000


def write(documents: Sequence[Document], folder: Path, split: str) -> dict[str, Any]:
    """Write one part of a corpus as shards and return its size; its `sha256` is of the texts in their order."""
    shards = 0
    for rows in _portions(documents):
        path = folder / f"{split}-{shards:05d}.parquet"
        with writing(path):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, _SCHEMA), path, compression="zstd")
        shards += 1
    digest = hashlib.sha256()
    for document in documents:
        digest.update(hashlib.sha256(document.text.encode()).digest())
    return {
        "documents": len(documents),
        "characters": sum(len(document.text) for document in documents),
        "bytes": sum(len(document.text.encode()) for document in documents),
        "shards": shards,
        "sha256": digest.hexdigest(),
    }


def read(folder: str | Path, split: Literal["train", "validation"]) -> Iterator[Document]:
    """Yield the documents of one part of a corpus, in order. Raises `DataError` where there is none."""
    shards = sorted(Path(folder).glob(f"{split}-*.parquet"))
    if not shards:
        raise DataError(f"{folder} holds no {split} part of a corpus; build one first")
    for shard in shards:
        try:
            with pyarrow.parquet.ParquetFile(shard) as file:
                for batch in file.iter_batches(batch_size=1024, columns=list(COLUMNS)):
                    for row in batch.to_pylist():
                        yield Document(**row | {"metadata": json.loads(row["metadata"])})
        except (pyarrow.ArrowException, OSError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{shard} is not a shard of a corpus ({reason}); build the corpus again") from None


def _portions(documents: Sequence[Document]) -> Iterator[list[dict[str, str]]]:
    rows: list[dict[str, str]] = []
    characters = 0
    for document in documents:
        rows.append(_row(document))
        characters += len(document.text)
        if characters >= _SHARD_CHARACTERS:
            yield rows
            rows, characters = [], 0
    if rows:
        yield rows


def _row(document: Document) -> dict[str, str]:
    plain = {name: str(getattr(document, name)) for name in COLUMNS[:-1]}
    plain["metadata"] = json.dumps(document.metadata, sort_keys=True, default=str)
    # Names from JSON may hold lone surrogates, which no file can.
    return {name: value.encode("utf-8", "replace").decode() for name, value in plain.items()}
