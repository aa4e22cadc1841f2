import gzip
import json
import sys
import zipfile
from itertools import islice
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
        ("a.json", b"[{}", "is not JSON"),
        ("a.json", b'[{"text": "x"}, {"txt": "y"}]', r"entry 2 has no field `text`.*set corpus\.text_column=txt"),
        ("a.zip", b"PK no", "not a zip file"),
        ("a.txt.gz", b"no", "what it packs is broken"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}')[:-9], "what it packs is broken"),
        ("a.jsonl.zst", b"no", "cannot be read: ZSTD"),
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


TEXTS = Path(__file__).parents[3] / "shared" / "data" / "text"


def test_packed_files_are_read_as_what_they_pack(tmp_path: Path):
    lines = b'{"text": "one"}\n{"text": "two"}\n'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    with pyarrow.CompressedOutputStream(str(tmp_path / "b.jsonl.zst"), "zstd") as file:
        file.write(lines)
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"three"))
    (tmp_path / "d.parquet.gz").write_bytes(b"of no kind")
    assert [(d.text, d.id) for d in found(tmp_path)] == [
        ("one", "a.jsonl.gz:1"),
        ("two", "a.jsonl.gz:2"),
        ("one", "b.jsonl.zst:1"),
        ("two", "b.jsonl.zst:2"),
        ("three", "c.txt.gz"),
    ]
    assert found(tmp_path / "a.jsonl.gz")[0].source == "a"


def test_a_zip_gives_its_members_in_order_and_counts_the_others(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for name, content in {
            "b/2.txt": b"two",
            "b/1.md": b"one",
            "c.jsonl": b'{"text": "three"}\n{"text": "four"}',
            "README": b"no",
            "x.png": b"\x00",
            "y.txt": b"\xff\xff\xff",
            "z.txt": b"",
        }.items():
            packed.writestr(name, content)
    reading = Reading()
    read = list(documents(CorpusSettings(path=str(tmp_path / "a.zip")), reading))
    assert [(d.text, d.id) for d in read] == [
        ("one", "a.zip/b/1.md"),
        ("two", "a.zip/b/2.txt"),
        ("three", "a.zip/c.jsonl:1"),
        ("four", "a.zip/c.jsonl:2"),
    ]
    assert reading.skipped == {"README": 1, ".png": 1, "file that is not UTF-8": 1, "empty file": 1}


def test_json_is_a_list_of_objects_or_texts_or_one_object(tmp_path: Path):
    (tmp_path / "a.json").write_text('[{"text": "one", "id": 5}, "two"]')
    (tmp_path / "b.json").write_text('{"text": "three"}')
    assert [(d.text, d.id) for d in found(tmp_path)] == [("one", "5"), ("two", "a.json:2"), ("three", "b.json:1")]


def test_another_column_can_hold_the_text(tmp_path: Path):
    pyarrow.parquet.write_table(pyarrow.table({"content": ["one"], "n": [1]}), tmp_path / "c.parquet")
    (tmp_path / "d.jsonl").write_text('{"content": "two", "text": "not this"}')
    read = found(tmp_path, text_column="content")
    assert [(d.text, d.metadata) for d in read] == [("one", {"n": 1}), ("two", {"text": "not this"})]


def test_several_paths_are_read_one_after_the_other(tmp_path: Path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"text {name}")
    settings = CorpusSettings(path=[str(tmp_path / "b.txt"), str(tmp_path / "a.txt")])
    assert [d.text for d in documents(settings)] == ["text b", "text a"]


def test_json_lines_are_read_no_further_than_they_are_asked_for(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n' * 50_000 + b"not JSON")
    assert len(list(islice(documents(CorpusSettings(path=str(tmp_path / "a.jsonl"))), 3))) == 3
    assert len(list(documents(CorpusSettings(path=str(tmp_path / "a.jsonl"), limit_documents=40_000)))) == 40_000


def test_broken_characters_are_counted_by_file(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"mostly fine text, one \xff bad byte, and more fine text")
    reading = Reading()
    assert list(documents(CorpusSettings(path=str(tmp_path)), reading))
    assert reading.broken == {str(tmp_path / "a.txt"): 1}


@pytest.mark.oracle
@pytest.mark.skipif(not TEXTS.is_dir(), reason="the texts are not at hand")
def test_every_file_of_the_shared_texts_is_read_or_counted():
    reading = Reading()
    read = list(documents(CorpusSettings(path=str(TEXTS)), reading))
    packed = [_members(TEXTS / f"{name}.zip") for name in ("inaugural", "state_union", "udhr2")]
    files = 2 + sum(not each.is_dir() for members in packed for each in members)
    assert len(read) + reading.skipped.total() == files == 516
    assert reading.skipped == {"README": 2, "empty file": 1}
    assert len(reading.broken) == 7


def _members(path: Path) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(path) as packed:
        return packed.infolist()
