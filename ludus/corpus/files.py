"""Documents from files: one file, a folder of them, or several of either.

A file of text is one document; each JSON line and each Parquet row is one. Whatever cannot be read is an error when it
was asked for by name, and is counted when it merely lies in the folder.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ludus.base.errors import DataError
from ludus.corpus.document import Document, Reading
from ludus.corpus.readers import KINDS, NotText, Way, kind_of, read

_PROVENANCE = ("id", "source", "url", "licence", "license", "metadata")


def file_documents(
    path: Path, source: str, licence: str, reading: Reading, *, column: str = "text"
) -> Iterator[Document]:
    """Yield the documents under a path in the order of file names; count files passed over in `reading`.

    Raises `DataError` for a missing path, a folder without any supported file, and files that are empty or broken.
    """
    way = Way(column, reading)
    if not path.exists():
        raise DataError(f"{path} does not exist; corpus.path must name a file or folder of {', '.join(KINDS)}")
    if path.is_file():
        if not kind_of(path.name):
            raise DataError(f"{path} is not of a supported kind ({', '.join(KINDS)})")
        yield from documents_of(path, path.name, source or _stem(path.name), licence, way)
        return
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    reasons = {file: _why_skipped(file, path) for file in files}
    if all(reasons.values()):
        raise DataError(f"{path} holds no file of a supported kind ({', '.join(KINDS)}) among its {len(files)} files")
    reading.skipped.update(reason for reason in reasons.values() if reason)
    for file, reason in reasons.items():
        if not reason:
            name = file.relative_to(path).as_posix()
            try:
                yield from documents_of(file, name, source or path.resolve().name, licence, way)
            except NotText as problem:
                reading.skipped[problem.kind] += 1


def _stem(name: str) -> str:
    """Return a file's name without the endings that say its kind."""
    return name[: name.lower().index(kind_of(name))] or name


def _why_skipped(file: Path, folder: Path) -> str | None:
    """Return the kind under which a file in a folder is passed over, or None to read it."""
    if any(part.startswith(".") for part in file.relative_to(folder).parts):
        return "hidden file"
    if not kind_of(file.name):
        return file.suffix.lower() or file.name
    return None if file.stat().st_size else "empty file"


def documents_of(file: Path, name: str, source: str, licence: str, way: Way) -> Iterator[Document]:
    """Yield the documents of one file, which they are told apart in by `name`."""
    try:
        if file.stat().st_size == 0:
            raise DataError(f"{file} is empty (0 bytes)")
        for text, place, row in read(file, way):
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
