"""Documents on disk: Parquet shards that any tool for data frames opens, written and read as a stream."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from ludus.base.errors import DataError
from ludus.base.files import writing
from ludus.corpus.document import Document

COLUMNS = ("text", "id", "source", "url", "licence", "metadata")
_SHARD_CHARACTERS = 64_000_000
_ROWS_CHARACTERS = 4_000_000  # of a row group: what is held while writing


class Writer:
    """Append documents to one part of a corpus; `close` says its size. Its `sha256` is of the texts in their order."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self.documents = self.characters = self.bytes = self.shards = 0
        self._digest = hashlib.sha256()
        self._rows: list[dict[str, str]] = []
        self._waiting = self._written = 0  # characters in rows, and in the open shard
        self._shard: Any = None

    def append(self, document: Document) -> None:
        """Add one document."""
        encoded = document.text.encode("utf-8", "replace")
        self._digest.update(hashlib.sha256(encoded).digest())
        self.documents += 1
        self.characters += len(document.text)
        self.bytes += len(encoded)
        self._rows.append(_row(document))
        self._waiting += len(document.text)
        if self._waiting >= min(_ROWS_CHARACTERS, _SHARD_CHARACTERS):
            self._flush()

    def _flush(self) -> None:
        import pyarrow
        import pyarrow.parquet

        schema = pyarrow.schema([(name, pyarrow.string()) for name in COLUMNS])
        path = self.folder / f"{self.split}-{self.shards:05d}.parquet"
        with writing(path):
            if self._shard is None:
                self._shard = pyarrow.parquet.ParquetWriter(path, schema, compression="zstd")
            self._shard.write_table(pyarrow.Table.from_pylist(self._rows, schema))
            self._written += self._waiting
            self._rows, self._waiting = [], 0
            if self._written >= _SHARD_CHARACTERS:
                self._end_shard()

    def _end_shard(self) -> None:
        self._shard.close()
        self._shard, self._written = None, 0
        self.shards += 1

    def close(self) -> dict[str, Any]:
        """Write what is left and return the size of the part."""
        if self._rows:
            self._flush()
        if self._shard is not None:
            self._end_shard()
        size = {"documents": self.documents, "characters": self.characters, "bytes": self.bytes}
        return size | {"shards": self.shards, "sha256": self._digest.hexdigest()}

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._shard is not None:  # an error on the way: the file is of no use, but not left open
            self._shard.close()


def write(documents: Iterable[Document], folder: Path, split: str) -> dict[str, Any]:
    """Write one part of a corpus as shards and return its size."""
    with Writer(folder, split) as part:
        for document in documents:
            part.append(document)
        return part.close()


def read(folder: str | Path, split: str) -> Iterator[Document]:
    """Yield the documents of one part of a corpus, in order. Raises `DataError` where there is none."""
    import pyarrow
    import pyarrow.parquet

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


def _row(document: Document) -> dict[str, str]:
    plain = {name: str(getattr(document, name)) for name in COLUMNS[:-1]}
    plain["metadata"] = json.dumps(document.metadata, sort_keys=True, default=str)
    # Names from JSON may hold lone surrogates, which no file can.
    return {name: value.encode("utf-8", "replace").decode() for name, value in plain.items()}
