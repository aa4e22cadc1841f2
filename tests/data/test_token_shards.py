import json
from itertools import pairwise

import numpy as np
import pytest

from ludus.base.errors import DataError, TokenizerMismatch
from ludus.data.files import Files
from ludus.data.shards import Writer, link, read, write


@pytest.mark.parametrize(("vocabulary", "dtype"), [(300, np.uint16), (65_536, np.uint16), (65_537, np.uint32)])
def test_documents_come_back_in_the_smallest_type_that_holds_them(tmp_path, vocabulary: int, dtype):
    documents = [np.array([1, 2, vocabulary - 1]), np.array([], dtype=int), np.array([7])]
    write(tmp_path, documents, vocabulary=vocabulary, tokenizer_hash="abc", num_bytes=12)
    shards = read(tmp_path, tokenizer_hash="abc")
    assert shards.tokens.dtype == dtype
    found = [shards.tokens[a:b].tolist() for a, b in pairwise(shards.offsets)]
    assert found == [document.tolist() for document in documents]
    assert shards.num_bytes == 12


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    write(tmp_path, [np.array([1])], vocabulary=300, tokenizer_hash="a" * 64, num_bytes=1)
    with pytest.raises(TokenizerMismatch, match="aaaaaaaa, this run uses bbbbbbbb"):
        read(tmp_path, tokenizer_hash="b" * 64)


def test_an_empty_corpus_is_refused(tmp_path):
    with pytest.raises(DataError, match="no tokens to write"):
        write(tmp_path, [np.array([], dtype=int)], vocabulary=300, tokenizer_hash="a", num_bytes=0)


@pytest.mark.parametrize("loss", ["tokens.json", "tokens-00000.bin", "offsets.npy", "half", "index"])
def test_a_folder_that_lost_something_is_said_in_one_line(tmp_path, loss: str):
    write(tmp_path, [np.arange(100)], vocabulary=300, tokenizer_hash="a", num_bytes=100)
    if loss == "half":
        (tmp_path / "tokens-00000.bin").write_bytes((tmp_path / "tokens-00000.bin").read_bytes()[:100])
    elif loss == "index":
        np.save(tmp_path / "offsets.npy", np.array([0, 99]), allow_pickle=False)
    else:
        (tmp_path / loss).unlink()
    with pytest.raises(DataError, match="with `ludus tokenizer`") as caught:
        read(tmp_path, tokenizer_hash="a")
    assert "\n" not in str(caught.value)


def test_files_are_of_bounded_size_and_read_as_one_array(tmp_path):
    draw = np.random.default_rng(0)
    documents = [draw.integers(0, 300, size) for size in (3, 10, 25, 0, 1, 7)]
    writer = Writer(tmp_path, vocabulary=300, tokenizer_hash="a", file_tokens=10)
    for document in documents:
        writer.append(document, 2 * len(document))
    assert (writer.tokens, writer.documents) == (46, 6)
    about = writer.close()
    assert about["files"] == {f"tokens-{number:05d}.bin": size for number, size in enumerate([10, 10, 10, 10, 6])}
    assert (about["bytes"], about["bytes_per_token"]) == (92, 2.0)
    shards = read(tmp_path, tokenizer_hash="a")
    assert isinstance(shards.tokens, Files)
    found = [shards.tokens[a:b].tolist() for a, b in pairwise(shards.offsets)]
    assert found == [document.tolist() for document in documents]
    assert shards.predictions == 46 - 6


def test_folders_are_linked_into_one_without_a_copy(tmp_path):
    for name, first in (("web", 1), ("books", 5)):
        write(
            tmp_path / name / "train",
            [np.arange(first, first + 4), np.arange(2)],
            vocabulary=300,
            tokenizer_hash="a",
            num_bytes=first,
        )
    link(tmp_path / "train", [tmp_path / "web" / "train", tmp_path / "books" / "train"])
    assert not list((tmp_path / "train").glob("*.bin"))
    shards = read(tmp_path / "train", tokenizer_hash="a")
    found = [shards.tokens[a:b].tolist() for a, b in pairwise(shards.offsets)]
    assert found == [[1, 2, 3, 4], [0, 1], [5, 6, 7, 8], [0, 1]]
    assert shards.num_bytes == 6


def test_shards_of_one_file_under_the_older_name_are_read(tmp_path):
    write(tmp_path, [np.arange(9)], vocabulary=300, tokenizer_hash="a", num_bytes=9)
    about = json.loads((tmp_path / "tokens.json").read_text())
    del about["files"]
    (tmp_path / "tokens.json").write_text(json.dumps(about))
    (tmp_path / "tokens-00000.bin").rename(tmp_path / "tokens.bin")
    assert read(tmp_path, tokenizer_hash="a").tokens.tolist() == list(range(9))
