import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from ludus.base.errors import ConfigError, DataError
from ludus.corpus.document import Document, Reading
from ludus.corpus.settings import CorpusSettings
from ludus.corpus.sources import documents


def found(path: Path, **others: str) -> list[Document]:
    return list(documents(CorpusSettings(path=str(path), **others)))


def test_a_text_file_is_one_document(tmp_path: Path):
    (tmp_path / "Tale.TXT").write_bytes("\ufeffOnce upon a time, é\n".encode())
    assert found(tmp_path / "Tale.TXT", licence="CC0") == [
        Document("Once upon a time, é\n", "Tale.TXT", "Tale", licence="CC0")
    ]


def test_utf16_with_its_mark_is_text(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("naïve".encode("utf-16"))
    assert found(tmp_path / "a.txt")[0].text == "naïve"


def test_json_lines_keep_their_provenance(tmp_path: Path):
    rows = [
        {"text": "one", "id": 7, "url": "https://a", "license": "MIT", "metadata": {"a": 1}, "score": 2},
        {"text": "two", "source": "web"},
    ]
    (tmp_path / "b.jsonl").write_text("\n\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    first, second = found(tmp_path / "b.jsonl")
    assert first == Document("one", "7", "b", "https://a", "MIT", {"score": 2, "a": 1})
    assert second == Document("two", "b.jsonl:3", "web")


def test_parquet_gives_a_document_for_each_row(tmp_path: Path):
    table = pyarrow.table({"text": ["one", "two"], "url": ["https://a", None], "metadata": ['{"a": 1}', "{}"]})
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    first, second = found(tmp_path / "c.parquet")
    assert first == Document("one", "c.parquet:1", "c", "https://a", metadata={"a": 1})
    assert second == Document("two", "c.parquet:2", "c")


def test_a_folder_is_read_in_order_and_what_is_passed_over_is_counted(tmp_path: Path):
    for name, content in {
        "b/2.md": "two",
        "a.txt": "one",
        "c.txt": "",
        "x.png": "\x00",
        "y.png": "",
        ".hid.txt": "no",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    reading = Reading()
    texts = [d.text for d in documents(CorpusSettings(path=str(tmp_path)), reading)]
    assert texts == ["one", "two"]
    assert reading.skipped == {".png": 2, "empty file": 1, "hidden file": 1}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b"\x7fELF\x00\x01", "binary"),
        ("a.txt", "äöü ".encode("latin-1") * 20, "not UTF-8"),
        ("a.pdf", b"%PDF", "supported"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}', "a.jsonl:2 has no field `text`"),
        ("a.jsonl", b'{"body": "x"}', "it has: body"),
        ("a.jsonl", b"[1]", "it has: list"),
        ("a.jsonl", b"{", "a.jsonl:1 is not JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1 is not JSON"),
        ("a.parquet", b"PAR1", "not a Parquet file"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_line(tmp_path: Path, name: str, content: bytes, says: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        found(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_parquet_without_text_names_its_columns(tmp_path: Path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["one"]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="it has: body"):
        found(tmp_path / "c.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": [1]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="row 1: `text` is int"):
        found(tmp_path / "c.parquet")


def test_a_missing_path_and_a_folder_without_text_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        found(tmp_path / "absent")
    (tmp_path / "x.png").touch()
    with pytest.raises(DataError, match="no file of a supported kind"):
        found(tmp_path)


def test_a_few_broken_bytes_are_read_as_replacement_characters(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"mostly fine text, one \xff bad byte, and more fine text")
    assert found(tmp_path / "a.txt")[0].text.count("\ufffd") == 1


def test_a_path_takes_the_place_of_a_url(tmp_path: Path):
    (tmp_path / "a.txt").write_text("had by hand")
    settings = CorpusSettings(path=str(tmp_path / "a.txt"), url="https://example.invalid/a.txt")
    assert [document.text for document in documents(settings)] == ["had by hand"]


def test_a_hash_without_a_url_is_refused():
    with pytest.raises(ConfigError, match=r"corpus\.sha256"):
        list(documents(CorpusSettings(path="a", sha256="0" * 64)))


def test_without_a_path_the_documentation_of_this_python_is_read():
    first = next(documents(CorpusSettings()))
    assert first.licence == "PSF-2.0"
    assert first.source == f"python-{sys.version_info[0]}.{sys.version_info[1]} documentation"
