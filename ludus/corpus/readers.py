"""One file's documents, by its kind: text, JSON lines, JSON, Parquet, a zip of them; packed with gzip or zstd or not.

A file is read as a stream, whatever its size: of JSON lines one line is held, of Parquet a thousand rows, of text,
JSON and a member of a zip the whole.
"""

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ludus.base.errors import DataError, nearest
from ludus.corpus.document import Reading

# The text, where in the file it stands ("" for a whole file), and what else is said of it.
Rows = Iterator[tuple[str, str, dict[str, Any]]]

KINDS = (".txt", ".md", ".jsonl", ".json", ".parquet", ".zip")
PACKED = (".gz", ".zst")


class NotText(DataError):
    """Bytes that are no text in UTF-8: an error for a file that was named, a count for one that lies in a folder."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Way:
    """How to read: the column or key that holds the text, and the record of what happens."""

    column: str
    reading: Reading


def kind_of(name: str) -> str:
    """Return a file's kind by its name, what it is packed with left out; "" for one that is not read."""
    path = PurePosixPath(name.lower())
    inner = PurePosixPath(path.stem).suffix if path.suffix in PACKED else path.suffix
    packable = path.suffix not in PACKED or inner not in (".parquet", ".zip")
    return inner if inner in KINDS and packable else ""


def read(path: Path, way: Way) -> Rows:
    """Yield what a file holds. Raises `DataError` for one that is broken or of another kind than it says."""
    kind = kind_of(path.name)
    if kind == ".parquet":
        yield from _parquet(path, str(path), way)
    elif kind == ".zip":
        yield from _zip(path, way)
    else:
        try:
            with _opened(path) as file:
                yield from _STREAMS[kind](file, str(path), way)
        except (gzip.BadGzipFile, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is packed, and what it packs is broken: {error}") from None


def _opened(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"))  # type: ignore[arg-type]
    if path.suffix.lower() == ".zst":
        import pyarrow

        try:
            return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))  # type: ignore[arg-type]
        except pyarrow.ArrowException as error:
            raise DataError(f"{path} is no zstd file: {str(error).splitlines()[0]}") from None
    return path.open("rb")


def decode(content: bytes, name: str, reading: Reading) -> str:
    """Decode UTF-8 text (or UTF-16 with its mark); a few broken bytes become U+FFFD, which are counted.

    Raises `NotText` for a binary file and for text of which more than a twentieth cannot be read.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16", "replace")
    elif b"\x00" in content:
        raise NotText(f"{name} is a binary file (it holds NUL bytes), not text", "binary file")
    else:
        text = content.decode("utf-8-sig", "replace")
    broken = text.count("\ufffd")
    broken -= content.count("\ufffd".encode()) if broken else 0
    if broken * 20 > len(text):
        says = f"{name} is not UTF-8 text: {broken} of its {len(text)} characters cannot be read; convert it"
        raise NotText(says, "file that is not UTF-8")
    if broken:
        reading.broken[name] += broken
    return text


def _text(file: IO[bytes], name: str, way: Way) -> Rows:
    yield decode(file.read(), name, way.reading), "", {}


def _lines(file: IO[bytes], name: str, way: Way) -> Rows:
    for number, line in enumerate(_decoded_lines(file, name, way.reading), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{name}:{number} is not JSON; each line must be an object with `{way.column}`") from None
        yield _row(row, f"{name}:{number}", f":{number}", way)


def _decoded_lines(file: IO[bytes], name: str, reading: Reading) -> Iterator[str]:
    first = file.readline()
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):  # UTF-16: its line ends are two bytes
        yield from decode(first + file.read(), name, reading).split("\n")
        return
    yield decode(first, f"{name}:1", reading)
    for number, line in enumerate(file, 2):
        try:
            yield line.decode()
        except UnicodeDecodeError:
            yield decode(line, f"{name}:{number}", reading)


def _json(file: IO[bytes], name: str, way: Way) -> Rows:
    try:
        content = json.loads(decode(file.read(), name, way.reading))
    except (ValueError, RecursionError):
        raise DataError(f"{name} is not JSON; one object on each line would be a .jsonl file") from None
    rows = content if isinstance(content, list) else [content]
    for number, row in enumerate(rows, 1):
        yield _row({way.column: row} if isinstance(row, str) else row, f"{name}, entry {number}", f":{number}", way)


def _row(row: Any, where: str, place: str, way: Way) -> tuple[str, str, dict[str, Any]]:
    if not isinstance(row, dict) or not isinstance(row.get(way.column), str):
        keys = list(row) if isinstance(row, dict) else [type(row).__name__]
        raise DataError(f"{where} has no field `{way.column}` with a string ({_others(keys, way.column)})")
    return row.pop(way.column), place, row


def _others(names: list[str], wanted: str) -> str:
    near = nearest(wanted, [name for name in names if name != wanted])
    choose = f"; set corpus.text_column={near or names[0]} for another" if names else ""
    return f"it has: {', '.join(names) or 'nothing'}{choose}"


def _parquet(file: Path | IO[bytes], name: str, way: Way) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            columns = table.schema_arrow.names
            if way.column not in columns:
                raise DataError(f"{name} has no column `{way.column}` ({_others(columns, way.column)})")
            rows = (row for batch in table.iter_batches(batch_size=1024) for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                text = row.pop(way.column)
                if not isinstance(text, str):
                    raise DataError(f"{name}, row {number}: `{way.column}` is {type(text).__name__}, not a string")
                yield text, f":{number}", row
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{name} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from None


def _zip(path: Path, way: Way) -> Rows:
    """Read a zip's members in the order of their names; those of other kinds are counted with the folder's files."""
    try:
        with zipfile.ZipFile(path) as packed:
            members = sorted((each for each in packed.infolist() if not each.is_dir()), key=lambda each: each.filename)
            known = [member for member in members if kind_of(member.filename) in _STREAMS and member.file_size]
            if not known:
                raise DataError(f"{path} holds no text among its {len(members)} files ({', '.join(_STREAMS)} are read)")
            for member in members:
                if member in known:
                    yield from _member(packed, member, path, way)
                else:
                    kind = PurePosixPath(member.filename)
                    way.reading.skipped[(kind.suffix or kind.name) if member.file_size else "empty file"] += 1
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # the last: it wants a password
        raise DataError(f"{path} is not a zip file that can be read: {error}") from None


def _member(packed: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, way: Way) -> Rows:
    with packed.open(member) as file:
        try:
            for text, place, row in _STREAMS[kind_of(member.filename)](file, f"{path}/{member.filename}", way):
                yield text, f"/{member.filename}{place}", row
        except NotText as problem:
            way.reading.skipped[problem.kind] += 1


_STREAMS: dict[str, Callable[[IO[bytes], str, Way], Rows]] = {
    ".txt": _text,
    ".md": _text,
    ".jsonl": _lines,
    ".json": _json,
}
