from itertools import pairwise

import numpy as np
import pytest

from ludus.base.errors import DataError, TokenizerMismatch
from ludus.data.shards import read, write


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


@pytest.mark.parametrize("loss", ["tokens.json", "tokens.bin", "offsets.npy", "half"])
def test_a_folder_that_lost_something_is_said_in_one_line(tmp_path, loss: str):
    write(tmp_path, [np.arange(100)], vocabulary=300, tokenizer_hash="a", num_bytes=100)
    if loss == "half":
        (tmp_path / "tokens.bin").write_bytes((tmp_path / "tokens.bin").read_bytes()[:100])
    else:
        (tmp_path / loss).unlink()
    with pytest.raises(DataError, match="with `ludus tokenizer`") as caught:
        read(tmp_path, tokenizer_hash="a")
    assert "\n" not in str(caught.value)
