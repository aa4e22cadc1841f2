import json
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors
from hypothesis import given, settings
from hypothesis import strategies as st

from ludus.base.errors import DataError, NetworkError
from ludus.text import ranks
from ludus.text.find import find, repository
from ludus.text.settings import TokenizerSettings
from ludus.text.tokenizer import Tokenizer
from ludus.text.train import prepare, with_own_template

GPT2 = Path(__file__).parents[3] / "shared" / "data" / "tokenizers" / "gpt2"
at_hand = pytest.mark.skipif(not GPT2.is_dir(), reason="GPT-2's vocabulary is not at hand")


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return Tokenizer.load(GPT2 / "gpt2.tiktoken")


@pytest.fixture(scope="module")
def reference():
    import tiktoken

    table = ranks.read_ranks(GPT2 / "gpt2.tiktoken")
    return tiktoken.Encoding("gpt2", pat_str=ranks.GPT2_SPLIT, mergeable_ranks=table, special_tokens={})


@at_hand
@pytest.mark.oracle
@settings(deadline=None, max_examples=300)
@given(text=st.one_of(st.text(max_size=80), st.text(st.sampled_from("ab  c\n\t'sdll19.,!é日\U0001f600"), max_size=80)))
def test_gpt2_encodes_any_text_as_tiktoken_does(gpt2: Tokenizer, reference, text: str):
    assert gpt2.encode(text) == reference.encode_ordinary(text)
    assert gpt2.encode_batch([text])[0].tolist() == reference.encode_ordinary(text)


@at_hand
@pytest.mark.oracle
def test_gpt2_encodes_unlikely_and_likely_text_as_tiktoken_does(gpt2: Tokenizer, reference):
    draw = np.random.default_rng(0)
    wild = "".join(map(chr, draw.integers(1, 0xD800, 3000).tolist() + draw.integers(0xE000, 0x110000, 1000).tolist()))
    words = " ".join(token.decode("utf-8", "replace") for token in ranks.read_ranks(GPT2 / "gpt2.tiktoken"))
    for text in (wild, words, words[::-1], "  \n \n\n" * 50, "a" * 999, "<|endoftext|> it's 1234567"):
        assert gpt2.encode(text) == reference.encode_ordinary(text)


@at_hand
@pytest.mark.oracle
def test_the_rank_file_is_the_tokenizer_json_that_is_published(gpt2: Tokenizer):
    published = json.loads((GPT2 / "tokenizer.json").read_text(encoding="utf-8"))
    ours = json.loads(ranks.definition(ranks.read_ranks(GPT2 / "gpt2.tiktoken")))
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in published["model"]["merges"]]
    assert ours["model"]["merges"] == merges
    assert ours["model"]["vocab"] | {"<|endoftext|>": 50_256} == published["model"]["vocab"]


@at_hand
def test_gpt2_frames_documents_and_turns_with_its_one_token(gpt2: Tokenizer):
    assert gpt2.bos == gpt2.end == gpt2.pad == 50_256
    assert gpt2.vocabulary_size == 50_257
    assert with_own_template(gpt2).vocabulary_size == 50_257 + 4  # padding and three roles
    assert 50_256 not in gpt2.encode("a <|endoftext|> in the text")


@at_hand
def test_an_existing_vocabulary_is_named_by_its_folder(gpt2: Tokenizer):
    named = prepare(iter(()), TokenizerSettings(path=str(GPT2)))
    text = "The same words, 12 of them, whichever file they were named in: naïve café."
    assert named.encode(text) == gpt2.encode(text)


def test_a_rank_file_that_is_not_gpt2s_is_one_clear_line(tmp_path: Path):
    for content, says in ((b"IQ== 0\n", "has 1 ranks; of rank files only GPT-2's"), (b"\xff", "is not a rank file")):
        (tmp_path / "x.tiktoken").write_bytes(content)
        with pytest.raises(DataError, match=says) as caught:
            Tokenizer.load(tmp_path / "x.tiktoken")
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no rank file at"):
        Tokenizer.load(tmp_path / "y.tiktoken")


def test_a_token_that_nothing_before_it_makes_is_damage():
    table = {bytes([byte]): byte for byte in range(256)} | {b"abc": 256}
    with pytest.raises(DataError, match="cannot be made of those before it"):
        ranks.definition(table)


def test_a_name_is_of_the_hub_where_it_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert repository("gpt2") == "openai-community/gpt2"
    assert repository("some/model") == "some/model"
    for path in ("nowhere", "runs/tinny", "some/tokenizer.json", "./gpt2", "~/x", "gpt2.tiktoken", "a/b/c"):
        assert repository(path) is None
        assert find(path) == Path(path).expanduser()
    (tmp_path / "gpt2").mkdir()
    assert repository("gpt2") is None


def test_a_tokenizer_of_the_hub_is_fetched_with_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def download(name: str, file: str) -> str:
        asked.append((name, file))
        if file == "chat_template.jinja":
            raise errors.EntryNotFoundError("none")
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert find("gpt2") == tmp_path
    assert [file for _, file in asked] == ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    assert {name for name, _ in asked} == {"openai-community/gpt2"}


def test_without_a_network_a_name_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NetworkError, match=r"set tokenizer\.path=FILE") as caught:
        find("gpt2")
    assert "\n" not in str(caught.value)
