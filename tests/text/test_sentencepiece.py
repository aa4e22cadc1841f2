import io
import struct
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text.unicode_strings import strings

from ludus.base.errors import DataError
from ludus.text import sentencepiece
from ludus.text.tokenizer import Tokenizer

DATA = Path(__file__).parents[3] / "shared" / "data"
LLAMA2, STORIES = DATA / "tokenizers" / "llama2", DATA / "weights" / "stories260K.bin"
TEXT = (
    "The quick brown fox jumps over the lazy dog, and 1234 other foxes do so too: it's their habit.\n"
    "Überraschung! Naïve cafés serve ﬁne Ａ-grade tea\tand   coffee № 5; Ελληνικά, Привет, 日本語, 한국어.\n"
    "A number of people remembered what something between them had meant while others were still waiting there.\n"
) * 20
KINDS = {
    "bpe": {"model_type": "bpe", "byte_fallback": True},
    "bpe without bytes, as it comes": {"model_type": "bpe", "normalization_rule_name": "nmt_nfkc", "ends": True},
    "bpe without a first space": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False},
    "bpe with words of its own": {
        "model_type": "bpe",
        "byte_fallback": True,
        "user_defined_symbols": ["<think>", "fox\u2581", "[X]"],
    },
    "unigram": {"model_type": "unigram", "byte_fallback": True},
    "unigram, normalized": {
        "model_type": "unigram",
        "byte_fallback": True,
        "normalization_rule_name": "nmt_nfkc_cf",
        "ends": True,
    },
    "unigram without bytes": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc", "ends": True},
}


@pytest.fixture(scope="module", params=[LLAMA2, STORIES], ids=["llama2", "stories260K"])
def real(request: pytest.FixtureRequest) -> Tokenizer:
    if not request.param.exists():
        pytest.skip(f"{request.param.name} is not at hand")
    return Tokenizer.load(request.param)


@pytest.mark.oracle
@pytest.mark.skipif(not LLAMA2.is_dir(), reason="Llama 2's tokenizer.model is not at hand")
def test_llama2_encodes_a_thousand_strings_as_sentencepiece_does():
    library = pytest.importorskip("sentencepiece")
    reference = library.SentencePieceProcessor(model_file=str(LLAMA2 / "tokenizer.model"))
    tokenizer = Tokenizer.load(LLAMA2)
    texts = [*strings(1000), *("x" + " " * length + "y" for length in range(64))]
    assert [row.tolist() for row in tokenizer.encode_batch(texts)] == reference.encode(texts)
    assert [tokenizer.encode(text) for text in texts] == reference.encode(texts)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts
    assert (tokenizer.bos, tokenizer.end) == (reference.bos_id(), reference.eos_id())


@pytest.mark.oracle
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_each_kind_encodes_a_thousand_strings_as_sentencepiece_does(kind: str, tmp_path: Path):
    library = pytest.importorskip("sentencepiece")
    asked = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, **KINDS[kind]}
    asked["remove_extra_whitespaces"] = asked.pop("ends", False)
    written = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=written,
        vocab_size=450,
        hard_vocab_limit=False,
        minloglevel=2,
        **asked,
    )
    (tmp_path / "tokenizer.model").write_bytes(written.getvalue())
    reference = library.SentencePieceProcessor(model_proto=written.getvalue())
    tokenizer = Tokenizer.load(tmp_path)
    texts = [*strings(1000, seed=1), *TEXT.splitlines(), "a <think> b[X]fox c", "  two  spaces  ", "<0x41>"]
    differ = [text for text in texts if tokenizer.encode(text) != reference.encode(text)]
    assert not differ
    assert [row.tolist() for row in tokenizer.encode_batch(texts)] == [tokenizer.encode(text) for text in texts]
    assert tokenizer.lossless == (asked["normalization_rule_name"] == "identity")
    if tokenizer.lossless:
        assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts


def llama2c_encode(pieces: list[tuple[bytes, float]], text: str) -> list[int]:
    """Encode as llama2.c does: characters, else bytes; then the best pair is joined until none is left."""
    numbers = {piece: index for index, (piece, _) in reversed(list(enumerate(pieces)))}
    tokens = [numbers[b" "]] if text else []
    for character in map(str.encode, text):
        tokens += [numbers[character]] if character in numbers else [byte + 3 for byte in character]
    while True:
        joints = [
            (-pieces[index][1], place, index)
            for place, pair in enumerate(pairwise(tokens))
            if (index := numbers.get(pieces[pair[0]][0] + pieces[pair[1]][0])) is not None
        ]
        if not joints:
            return tokens
        _, place, index = min(joints)
        tokens[place : place + 2] = [index]


@pytest.mark.oracle
@pytest.mark.skipif(not STORIES.exists(), reason="stories260K.bin is not at hand")
def test_the_vocabulary_beside_a_llama2c_model_encodes_as_llama2c_does():
    data, pieces, place = (STORIES.parent / "tok512.bin").read_bytes(), [], 4
    while place < len(data):
        score, size = struct.unpack_from("<fi", data, place)
        pieces.append((data[place + 8 : place + 8 + size], score))
        place += 8 + size
    tokenizer = Tokenizer.load(STORIES)
    assert (tokenizer.vocabulary_size, tokenizer.bos, tokenizer.end, tokenizer.template) == (512, 1, 2, None)
    for text in [*strings(1000, seed=2), "Once upon a time, there was a little girl named Lily."]:
        assert tokenizer.encode(text) == llama2c_encode(pieces, text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.law
@settings(deadline=None, max_examples=100)
@given(data=st.one_of(st.binary(max_size=40), st.text(max_size=30).map(str.encode), st.just("▁ ▁x".encode())))
def test_decoding_gives_back_every_byte_after_a_space_that_is_not_the_texts(real: Tokenizer, data: bytes):
    whole, part = real.encode(data), real.encode(data, beginning=False)
    assert real.decode_bytes(whole) == data
    assert real.decode_bytes(part, beginning=False) == data
    assert b"".join(map(real.piece, part)) == data
    assert b"".join(map(real.piece, whole)) == (b" " + data if data else b"")
    assert real.encode_batch([data, data.decode("utf-8", "replace")])[0].tolist() == whole
    assert not {*whole, *part} & set(real.special_ids.values())
    assert real.token_bytes()[part].sum() == len(data)


@pytest.mark.law
@pytest.mark.parametrize("text", ["<s>", "</s>", "a</s><s> b", "<unk>", "<0x0A>", "<0x41>B"])
def test_no_text_becomes_a_special_token_or_a_byte_it_names(real: Tokenizer, text: str):
    ids = real.encode(text)
    assert not set(ids) & set(real.special_ids.values())
    assert real.decode(ids) == text


def test_only_a_beginning_gets_a_space(real: Tokenizer):
    first, later = real.encode("a day"), real.encode("a day", beginning=False)
    assert first == real.encode(" a day", beginning=False)
    assert real.decode_bytes(later, beginning=False) == b"a day"
    assert [row.tolist() for row in real.encode_batch(["a day"], beginning=False)] == [later]
    assert real.encode_template("<s>a day</s>") == [real.bos, *first, real.end]
    assert real.encode_template("a day") == later
    assert real.encode_template("a day", beginning=True) == first
    assert real.decode([real.bos, *first]) == "a day"
    assert real.encode("") == real.encode(b"") == []


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def model(*pieces: tuple[str, int], trainer: dict[int, int] | None = None) -> bytes:
    written = b""
    for text, kind in pieces:
        body = b"\x0a" + varint(len(text.encode())) + text.encode() + b"\x18" + bytes([kind])
        written += b"\x0a" + varint(len(body)) + body
    asked = b"".join(varint(number << 3) + varint(value) for number, value in (trainer or {3: 2}).items())
    return written + b"\x12" + varint(len(asked)) + asked


def test_what_cannot_be_carried_over_is_refused_by_name(tmp_path: Path):
    file = tmp_path / "tokenizer.model"
    pieces = [("<unk>", 2), ("<s>", 3), ("a", 1)]
    for content, says in (
        (model(*pieces, trainer={3: 4}), "type CHAR"),
        (model(*pieces, trainer={3: 3}), "type WORD"),
        (model(*pieces, trainer={3: 2, 24: 1}), "treat_whitespace_as_suffix"),
        (model(*pieces, ("a", 1)), "same text"),
        (model(*pieces)[:-3], "not a SentencePiece model"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=says) as caught:
            Tokenizer.load(file)
        assert "\n" not in str(caught.value)


def test_a_model_says_its_pieces_and_how_text_is_prepared(tmp_path: Path):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(model(("<unk>", 2), ("<s>", 3), ("</s>", 3), ("a", 1), ("<x>", 4)))
    read = sentencepiece.read(file)
    assert [piece.kind for piece in read.pieces] == [2, 3, 3, 1, 4]
    assert (read.kind, read.dummy_space, read.squeeze, read.byte_fallback) == (sentencepiece.BPE, True, True, False)
    assert read.specials == {"bos_token": "<s>", "eos_token": "</s>"}


def test_a_llama2c_vocabulary_that_is_none_is_one_clear_line(tmp_path: Path):
    (tmp_path / "tok32.bin").write_bytes(b"\x07\0\0\0" + b"\0" * 30)
    with pytest.raises(DataError, match=r"not a vocabulary of llama2\.c") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "model.bin").write_bytes(b"\x01\0\0\0" * 7)
    with pytest.raises(DataError, match="no tokenizer beside"):
        Tokenizer.load(tmp_path / "model.bin")
