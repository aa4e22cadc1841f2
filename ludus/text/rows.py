"""The rows of a file that holds conversations, each with its place: JSON Lines, JSON, CSV, Parquet, text; gz and zst.

A JSON file is a list of objects, or an object that holds one. A row's place is `file:line`, so that what is wrong with
it can be found. What a row means is for `formats.py` to say; files of a hub's data set come by `from_hub`.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ludus.base.errors import DataError
from ludus.corpus import hub

Row = tuple[str, dict[str, Any]]
KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md")
PACKED = (".gz", ".zst")
INSTEAD = "data=FILE"
LARGEST_CELL = 2**27  # characters of one cell of a CSV file


def rows_of(source: str | Path) -> Iterator[Row]:
    """Yield the rows of a file, of a folder's files, or of a data set of the hub (`owner/name[:subset][@revision]`).

    Raises `DataError` for what cannot be read, `NetworkError` when the hub cannot be reached.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and kind_of(file))
        if not files:
            raise DataError(f"{path} holds no file that can be read; expected {', '.join(KINDS)}")
        for file in files:
            yield from _rows(file)
    elif not path.exists() and _is_of_hub(str(source)):
        for file in from_hub(str(source)):
            yield from _rows(file)
    else:
        yield from _rows(path)


def kind_of(path: Path) -> str:
    """Return a file's kind by its name, packing left out; "" for one that is not known."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else ""


def from_hub(name: str) -> Iterator[Path]:
    """Fetch a data set's files of conversations, those of its training split where it says which, one by one."""
    import huggingface_hub

    wanted = hub.address(name)
    try:
        about = huggingface_hub.HfApi().dataset_info(wanted.name, revision=wanted.revision)
    except Exception as problem:  # of several libraries, by version
        raise hub.refusal(problem, f"data set {wanted.name}", f"datasets/{wanted.name}", INSTEAD) from None
    files = [each.rfilename for each in about.siblings or () if Path(each.rfilename).suffix in (".csv", ".tsv")]
    if any(kind_of(Path(each.rfilename)) in (".jsonl", ".json", ".parquet") for each in about.siblings or ()):
        files = hub.files_of(about, wanted, "*")
    files = [file for file in files if kind_of(Path(file)) not in ("", ".md", ".txt")] or files
    for file in [file for file in files if "train" in file.lower()] or files:
        try:
            found = huggingface_hub.hf_hub_download(wanted.name, file, repo_type="dataset", revision=about.sha)
        except Exception as problem:
            what = f"{file} of data set {wanted.name}"
            raise hub.refusal(problem, what, f"datasets/{wanted.name}", INSTEAD) from None
        yield Path(found)


def _is_of_hub(source: str) -> bool:
    looks_like_file = kind_of(Path(source)) or Path(source).suffix.lower() in PACKED
    return not looks_like_file and bool(re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w./-]+)?(@[\w./-]+)?", source))


def _rows(path: Path) -> Iterator[Row]:
    kind = kind_of(path)
    if kind == ".parquet":
        yield from _parquet(path)
        return
    text = _text(path)
    if not text.strip():
        raise DataError(f"{path} is empty; expected a JSON object on each line")
    yield from _READERS.get(kind, _lines)(text, path)


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
        elif path.suffix.lower() == ".zst":
            import pyarrow

            content = pyarrow.input_stream(io.BytesIO(content), compression="zstd").read()
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as text ({error}); expected JSON Lines") from None


def _lines(text: str, path: Path) -> Iterator[Row]:
    # Not splitlines: U+2028 and its like end a line for Python, and stand unescaped within JSON.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            if number == 1 and text.lstrip().startswith(("[", "{")) and _is_json(text):
                yield from _json(text, path)
                return
            raise DataError(f"{path}:{number}: not JSON; expected one object on each line") from None
        if isinstance(record, list) and number == 1 and len(text.strip()) == len(line.strip()) and _objects(record):
            yield from _json(text, path)
            return
        yield _object(record, f"{path}:{number}")


def _json(text: str, path: Path) -> Iterator[Row]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{") and "Extra data" in str(error):  # lines of JSON under another name
            yield from _lines(text, path)
            return
        line = getattr(error, "lineno", 1)
        raise DataError(f"{path}:{line}: not JSON ({error}); one object on each line would be a .jsonl file") from None
    if isinstance(content, dict):
        inside = {key: value for key, value in content.items() if _objects(value)}
        if len(inside) > 1:
            raise DataError(f"{path} holds several lists: {', '.join(inside)}; keep the one that is meant")
        content = next(iter(inside.values()), [content]) if "messages" not in inside else [content]
    if not isinstance(content, list):
        raise DataError(f"{path} holds a {type(content).__name__}; expected a list of objects")
    for number, record in enumerate(content, 1):
        yield _object(record, f"{path}, entry {number}")


def _object(record: Any, place: str) -> Row:
    if not isinstance(record, dict):
        raise DataError(f"{place}: expected an object, got a {type(record).__name__}")
    return place, record


def _objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _csv(text: str, path: Path) -> Iterator[Row]:
    csv.field_size_limit(LARGEST_CELL)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if kind_of(path) == ".tsv" else ",")
    try:
        for record in reader:
            if None in record:
                raise DataError(f"{path}:{reader.line_num}: more cells than the header has columns; quote the commas")
            yield f"{path}:{reader.line_num}", {key: _cell(value) for key, value in record.items()}
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV ({error})") from None


def _cell(value: Any) -> Any:
    """Return a cell; lists of messages are written into it as JSON."""
    if isinstance(value, str) and value.lstrip().startswith(("[{", '{"')):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            rows = (row for batch in table.iter_batches(batch_size=1024) for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield f"{path}, row {number}", {key: _cell(value) for key, value in row.items()}
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from None


def _whole(text: str, path: Path) -> Iterator[Row]:
    yield str(path), {"text": text}


_READERS: dict[str, Callable[[str, Path], Iterator[Row]]] = {
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".txt": _whole,
    ".md": _whole,
}
