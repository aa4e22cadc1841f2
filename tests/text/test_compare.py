import base64
import hashlib
from pathlib import Path

import pytest

from ludus.base.errors import DataError
from ludus.text.compare import report
from ludus.text.settings import TokenizerSettings
from ludus.text.train import train

TEXT = "A tokenizer that knows its text needs fewer tokens for it. Überraschung! 12 + 30 = 42.\n" * 4
ADDRESS = "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tokenizer():
    return train([TEXT], TokenizerSettings(vocabulary=290))


def ranks(path: Path, count: int) -> Path:
    tokens = [bytes([byte]) for byte in range(256)] + [f"{n:05d}".encode() for n in range(count - 256)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return path


def test_a_report_counts_tokens_and_bytes_of_each_vocabulary(tokenizer, tmp_path: Path):
    train([TEXT], TokenizerSettings(kind="character")).save(tmp_path / "single")
    rows = {row["name"]: row for row in report(tokenizer, TEXT, [str(tmp_path / "single")])}
    assert list(rows) == ["bpe-290", "single", "characters"]
    assert rows["bpe-290"]["tokens"] == len(tokenizer.encode(TEXT))
    assert rows["bpe-290"]["vocabulary"] == 290
    assert rows["single"]["tokens"] == rows["characters"]["tokens"] == len(TEXT)
    for row in rows.values():
        assert row["bytes_per_token"] == pytest.approx(len(TEXT.encode()) / row["tokens"])


def test_gpt2_is_found_where_tiktoken_keeps_it(tokenizer, tmp_path: Path):
    ranks(tmp_path / "cache" / hashlib.sha1(ADDRESS.encode()).hexdigest(), 50_256)
    rows = {row["name"]: row for row in report(tokenizer, TEXT)}
    assert rows["GPT-2"]["vocabulary"] == 50_256
    assert rows["GPT-2"]["tokens"] == len(TEXT.encode())  # these ranks hold no merge that occurs in the text


def test_a_rank_file_of_another_vocabulary_is_refused(tokenizer, tmp_path: Path):
    with pytest.raises(DataError, match="only GPT-2's"):
        report(tokenizer, TEXT, [str(ranks(tmp_path / "other.tiktoken", 300))])


def test_paths_that_are_no_vocabulary_are_refused_in_one_line(tokenizer, tmp_path: Path):
    (tmp_path / "broken.tiktoken").write_bytes(b"a b c\n")
    for path in ("broken.tiktoken", "absent.tiktoken", "absent.json"):
        with pytest.raises(DataError) as caught:
            report(tokenizer, TEXT, [str(tmp_path / path)])
        assert path in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.oracle
def test_gpt2_splits_text_as_its_published_pattern_does(tokenizer, tmp_path: Path):
    import tiktoken
    from tiktoken_ext import openai_public

    published = openai_public.r50k_pat_str
    from ludus.text.ranks import GPT2_SPLIT

    mergeable = {bytes([byte]): byte for byte in range(256)} | {b" the": 256, b"\n\n": 257, b"'s": 258, b"  ": 259}
    text = "It's the  the\n\n the's 12 été — 'LL we'll   \n end"
    ours, theirs = (
        tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=mergeable, special_tokens={})
        for name, pattern in (("ours", GPT2_SPLIT), ("theirs", published))
    )
    assert ours.encode_ordinary(text) == theirs.encode_ordinary(text)
