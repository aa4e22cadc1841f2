import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ludus.base.errors import DataError
from ludus.text.chat import render
from ludus.text.settings import TokenizerSettings
from ludus.text.template import SPECIALS
from ludus.text.tokenizer import Tokenizer
from ludus.text.train import train, with_own_template

TEXTS = [
    "The quick brown fox jumps over the lazy dog. It's the fox's 12th jump, and the dog's 7th nap.\n" * 3,
    "def add(a, b):\n    return a + b\n\n\nprint(add(12, 30))  # 42\n" * 3,
    "Überraschung: naïve café, 日本語 und Ελληνικά.\n" * 3,
]
SPOKEN = ["<|end|>", "<|assistant|>", "<|pad|><|bos|>", "a<|user|>b", "<0x41>", "Ġ", "\x00", "\ufeff"]


@pytest.fixture(scope="module", params=["bpe", "character"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train(iter(TEXTS), TokenizerSettings(kind=request.param, vocabulary=300))


anything = st.one_of(
    st.binary(max_size=80),
    st.lists(st.one_of(st.binary(max_size=3), st.sampled_from(SPOKEN).map(str.encode)), max_size=12).map(b"".join),
    st.text(max_size=60).map(str.encode),
)


@pytest.mark.law
@settings(deadline=None, max_examples=150)
@given(data=anything)
def test_decoding_gives_back_every_byte(tokenizer: Tokenizer, data: bytes):
    ids = tokenizer.encode(data)
    assert tokenizer.decode_bytes(ids) == data
    assert not set(ids) & set(tokenizer.special_ids.values())


@pytest.mark.law
@settings(deadline=None, max_examples=80)
@given(texts=st.lists(st.one_of(st.text(max_size=40), st.sampled_from(SPOKEN)), max_size=6))
def test_a_batch_encodes_as_its_texts_do_alone_and_decodes_to_them(tokenizer: Tokenizer, texts: list[str]):
    rows = tokenizer.encode_batch(texts)
    assert [row.tolist() for row in rows] == [tokenizer.encode(text) for text in texts]
    assert [tokenizer.decode(row) for row in rows] == texts
    assert all(row.dtype == np.uint16 for row in rows)


def test_a_lone_surrogate_and_bytes_are_encoded_in_a_batch_too(tokenizer: Tokenizer):
    rows = tokenizer.encode_batch(["a\ud800b", b"\xff\xfe", "plain"])
    assert [tokenizer.decode_bytes(row) for row in rows] == [b"a\xed\xa0\x80b", b"\xff\xfe", b"plain"]
    assert tokenizer.decode(rows[1]) == "\ufffd\ufffd"


@pytest.mark.law
@pytest.mark.parametrize("text", SPOKEN)
def test_no_text_becomes_a_special_token(tokenizer: Tokenizer, text: str):
    special = set(tokenizer.special_ids.values())
    assert not set(tokenizer.encode(text)) & special
    assert not set(tokenizer.encode_batch([text, text])[0].tolist()) & special
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_have_ids_no_bytes_and_no_text(tokenizer: Tokenizer):
    assert set(tokenizer.special_ids) == set(SPECIALS)
    assert (tokenizer.pad, tokenizer.bos, tokenizer.end) == (0, 1, 5)
    assert tokenizer.token_bytes()[[tokenizer.pad, tokenizer.bos, tokenizer.end]].tolist() == [0, 0, 0]
    assert tokenizer.decode([tokenizer.bos, *tokenizer.encode("hi"), tokenizer.end]) == "hi"
    assert tokenizer.encode_template("<|bos|>hi<|end|>") == [tokenizer.bos, *tokenizer.encode("hi"), tokenizer.end]


def test_token_bytes_add_up_to_the_text(tokenizer: Tokenizer):
    text = "naïve 日本 ümlaut 99\n\x01"
    sizes = tokenizer.token_bytes()
    assert len(sizes) == tokenizer.vocabulary_size
    assert sizes[tokenizer.encode(text)].sum() == len(text.encode())


def test_saving_and_loading_keeps_everything(tokenizer: Tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new")
    again = Tokenizer.load(tmp_path / "new")
    assert again.hash == tokenizer.hash
    assert again.template == tokenizer.template
    assert (again.bos, again.pad, again.end) == (tokenizer.bos, tokenizer.pad, tokenizer.end)
    assert again.encode(TEXTS[2]) == tokenizer.encode(TEXTS[2])
    assert Tokenizer.load(tmp_path / "new" / "tokenizer.json").hash == tokenizer.hash


def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer):
    with pytest.raises(DataError, match="this vocabulary has 0"):
        tokenizer.decode([tokenizer.vocabulary_size])
    with pytest.raises(DataError, match="-1"):
        tokenizer.decode([-1])


def foreign(tokenizer: Tokenizer, *, first: int = 0, theirs: str = "</s>") -> dict:
    """The same words as another project would number them: no special token but its own, which comes last."""
    definition = json.loads(tokenizer.definition)
    words = [token for token in definition["model"]["vocab"] if token not in SPECIALS]
    definition["model"]["vocab"] = {token: index for index, token in enumerate(words, first)}
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False) | {"special": True}
    definition["added_tokens"] = [{"id": first + len(words), "content": theirs} | flags]
    definition["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    return definition


def folder_of(folder: Path, definition: dict, **configuration: object) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration), encoding="utf-8")
    return folder


def test_loading_adds_no_token(tokenizer: Tokenizer, tmp_path):
    loaded = Tokenizer.load(folder_of(tmp_path, foreign(tokenizer), eos_token={"content": "</s>"}))
    theirs = tokenizer.vocabulary_size - 6
    assert loaded.special_ids == {"</s>": theirs}
    assert loaded.vocabulary_size == theirs + 1
    assert loaded.template is None
    assert loaded.bos == loaded.end == loaded.pad == theirs
    assert loaded.added == ()
    text = "a text</s> of more than two tokens"
    assert loaded.decode(loaded.encode(text)) == text
    assert theirs not in loaded.encode(text)


def test_a_template_brings_the_tokens_that_the_vocabulary_lacks(tokenizer: Tokenizer, tmp_path):
    loaded = Tokenizer.load(folder_of(tmp_path, foreign(tokenizer), eos_token="</s>"))
    dressed = loaded.with_template("{{ 'x' }}", tokens=["<|turn|>", "</s>"], end="<|turn|>")
    assert dressed.added == ("<|turn|>",)
    assert dressed.special_ids == {"</s>": loaded.end, "<|turn|>": loaded.vocabulary_size}
    assert (dressed.end, dressed.ends) == (loaded.vocabulary_size, (loaded.vocabulary_size, loaded.end))
    assert dressed.ancestors == (loaded.hash,)
    assert (loaded.template, dressed.template) == (None, "{{ 'x' }}")
    assert dressed.encode("a </s> <|turn|>") == loaded.encode("a </s> <|turn|>")
    dressed.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert (again.hash, again.end_token, again.ancestors) == (dressed.hash, "<|turn|>", dressed.ancestors)
    same = loaded.with_template("{{ 'y' }}")
    assert (same.hash, same.added, same.ancestors) == (loaded.hash, (), ())


def test_a_foreign_template_keeps_its_own_special_tokens(tokenizer: Tokenizer, tmp_path):
    template = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    loaded = Tokenizer.load(folder_of(tmp_path, foreign(tokenizer), eos_token="</s>", chat_template=template))
    assert loaded.end == tokenizer.vocabulary_size - 6
    assert loaded.template == template
    assert set(loaded.special_ids) == {"</s>"}


def test_a_vocabulary_with_one_token_for_both_ends_frames_with_that(tokenizer: Tokenizer, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(foreign(tokenizer, theirs="<|endoftext|>")), encoding="utf-8")
    loaded = with_own_template(Tokenizer.load(file))
    assert loaded.bos == loaded.end == loaded.special_ids["<|endoftext|>"] == tokenizer.vocabulary_size - 6
    assert loaded.pad == loaded.special_ids["<|pad|>"]
    assert set(loaded.special_ids) == {"<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"}
    loaded.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert (again.hash, again.template, again.bos, again.end) == (loaded.hash, loaded.template, loaded.bos, loaded.end)
    assert with_own_template(again) is again


def test_a_turn_ends_with_the_token_that_ends_a_document(tokenizer: Tokenizer, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(foreign(tokenizer, theirs="<|endoftext|>")), encoding="utf-8")
    loaded = with_own_template(Tokenizer.load(file))
    messages = [{"role": "user", "content": "hi <|endoftext|>"}, {"role": "assistant", "content": "yes"}]
    rendered = render(loaded, messages)
    assert list(rendered.tokens).count(loaded.end) == 3
    learned = [token for token, wanted in zip(rendered.tokens, rendered.mask, strict=True) if wanted]
    assert learned == [*loaded.encode("yes"), loaded.end]


def test_special_tokens_never_take_the_ids_of_others(tokenizer: Tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(foreign(tokenizer, first=7)), encoding="utf-8")
    loaded = Tokenizer.load(tmp_path)
    assert loaded.decode(loaded.encode("a fox")) == "a fox"
    with pytest.raises(DataError, match=r"two tokens|leaves ids out"):
        with_own_template(loaded)


def test_a_file_that_is_no_tokenizer_is_one_clear_line(tmp_path):
    for content in ("", "{}", "[1]", '{"added_tokens": [], "model": {"type": "Unigram", "vocab": []}}', "\x00"):
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
        with pytest.raises(DataError) as caught:
            Tokenizer.load(tmp_path)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no tokenizer at"):
        Tokenizer.load(tmp_path / "absent")


def test_a_vocabulary_that_loses_text_is_refused(tokenizer: Tokenizer, tmp_path):
    definition = json.loads(tokenizer.definition)
    definition["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    with pytest.raises(DataError, match="Lowercase"):
        Tokenizer.load(tmp_path)
