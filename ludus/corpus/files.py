"""Documents from files: plain text and Markdown, JSON lines, Parquet; one file or a folder of them.

A file of text is one document; each JSON line and each Parquet row is one. Whatever cannot be read is an error when it
was asked for by name, and is counted when it merely lies in the folder.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from ludus.base.errors import DataError
from ludus.corpus.document import Document

# The text, where in the file it stands ("" for a whole file), and what else is said of it.
Rows = Iterator[tuple[str, str, dict[str, Any]]]

_PROVENANCE = ("id", "source", "url", "licence", "license", "metadata")


def file_documents(path: Path, source: str, licence: str, skipped: Counter[str]) -> Iterator[Document]:
    """Yield the documents under a path in the order of file names; count files of other kinds in `skipped`.

    Raises `DataError` for a missing path, a folder without any supported file, and files that are empty or broken.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; corpus.path must name a file or folder of {_kinds()}")
    if path.is_file():
        if path.suffix.lower() not in _READERS:
            raise DataError(f"{path} is not of a supported kind ({_kinds()})")
        yield from _documents_of(path, path.name, source or path.stem, licence)
        return
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    reasons = {file: _why_skipped(file, path) for file in files}
    if all(reasons.values()):
        raise DataError(f"{path} holds no file of a supported kind ({_kinds()}) among its {len(files)} files")
    skipped.update(reason for reason in reasons.values() if reason)
    for file, reason in reasons.items():
        if not reason:
            yield from _documents_of(file, file.relative_to(path).as_posix(), source or path.name, licence)


def _why_skipped(file: Path, folder: Path) -> str | None:
    """Return the kind under which a file in a folder is passed over, or None to read it."""
    if any(part.startswith(".") for part in file.relative_to(folder).parts):
        return "hidden file"
    kind = file.suffix.lower()
    if kind not in _READERS:
        return kind or file.name
    return None if file.stat().st_size else "empty file"


def _kinds() -> str:
    return ", ".join(_READERS)


def _documents_of(file: Path, name: str, source: str, licence: str) -> Iterator[Document]:
    try:
        if file.stat().st_size == 0:
            raise DataError(f"{file} is empty (0 bytes)")
        for text, place, row in _READERS[file.suffix.lower()](file):
            yield Document(
                text,
                id=str(row.get("id") or name + place),
                source=str(row.get("source") or source),
                url=str(row.get("url") or ""),
                licence=str(row.get("licence") or row.get("license") or licence),
                metadata=_metadata(row),
            )
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None


def _metadata(row: dict[str, Any]) -> dict[str, Any]:
    """Keep what else a row says, its own `metadata` (an object, or one as JSON) included."""
    metadata = row.get("metadata")
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except ValueError:
            metadata = {"metadata": metadata}
    rest = {key: value for key, value in row.items() if key not in _PROVENANCE}
    return rest | (metadata if isinstance(metadata, dict) else {})


def _read_text(file: Path) -> Rows:
    yield decode(file.read_bytes(), file), "", {}


def decode(content: bytes, file: Path) -> str:
    """Decode UTF-8 text (or UTF-16 with its mark); a few broken bytes become U+FFFD, a binary file is a `DataError`."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16", "replace")
    elif b"\x00" in content:
        raise DataError(f"{file} is a binary file (it holds NUL bytes), not text")
    else:
        text = content.decode("utf-8-sig", "replace")
    broken = text.count("\ufffd") - content.count("\ufffd".encode())
    if broken * 20 > len(text):
        raise DataError(f"{file} is not UTF-8 text: {broken} of its {len(text)} characters cannot be read; convert it")
    return text


def _read_lines(file: Path) -> Rows:
    for number, line in enumerate(decode(file.read_bytes(), file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{file}:{number} is not JSON; each line must be an object with `text`") from None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise DataError(f"{file}:{number} has no field `text` with a string (it has: {keys or 'nothing'})")
        yield row.pop("text"), f":{number}", row


def _read_parquet(file: Path) -> Rows:
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            columns = table.schema_arrow.names
            if "text" not in columns:
                raise DataError(f"{file} has no column `text` (it has: {', '.join(columns)})")
            rows = (row for batch in table.iter_batches(batch_size=1024) for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                text = row.pop("text")
                if not isinstance(text, str):
                    raise DataError(f"{file}, row {number}: `text` is {type(text).__name__}; it must be a string")
                yield text, f":{number}", row
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{file} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from None


_READERS: dict[str, Callable[[Path], Rows]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".jsonl": _read_lines,
    ".parquet": _read_parquet,
}
