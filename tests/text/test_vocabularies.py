import base64
import json
from pathlib import Path

import pytest
from text.unicode_strings import strings

from ludus.base.errors import DataError, TokenizerMismatch
from ludus.text import ranks
from ludus.text.binding import require_same
from ludus.text.settings import TokenizerSettings
from ludus.text.tokenizer import Tokenizer
from ludus.text.train import prepare, train

DATA = Path(__file__).parents[3] / "shared" / "data"
GPT2, LLAMA3 = DATA / "tokenizers" / "gpt2", DATA / "tokenizers" / "llama3"
FOREIGN = {
    "gpt2": GPT2,
    "llama2": DATA / "tokenizers" / "llama2",
    "llama3": LLAMA3,
    "tok512": DATA / "weights" / "tok512.bin",
}
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEXT = "A tokenizer is bound to its model; 12 words of another would be noise. Ünd so weiter.\n" * 6


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return train([TEXT], TokenizerSettings(vocabulary=290))


@pytest.fixture(scope="module", params=FOREIGN)
def foreign(request: pytest.FixtureRequest) -> Tokenizer:
    if not FOREIGN[request.param].exists():
        pytest.skip(f"the vocabulary of {request.param} is not at hand")
    return Tokenizer.load(FOREIGN[request.param])


@pytest.mark.oracle
@pytest.mark.parametrize("file", [GPT2 / "gpt2.tiktoken", LLAMA3 / "tokenizer.model"], ids=["gpt2", "llama3"])
def test_rank_files_encode_a_thousand_strings_as_tiktoken_does(file: Path):
    tiktoken = pytest.importorskip("tiktoken")
    if not file.exists():
        pytest.skip(f"{file.name} is not at hand")
    table = ranks.read_ranks(file)
    known = ranks.KNOWN[len(table)]
    reference = tiktoken.Encoding(known.name, pat_str=known.split, mergeable_ranks=table, special_tokens=known.specials)
    tokenizer = Tokenizer.load(file)
    texts = strings(1000, seed=3)
    assert [tokenizer.encode(text) for text in texts] == [reference.encode_ordinary(text) for text in texts]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts
    assert tokenizer.special_ids == dict(known.specials)
    assert tokenizer.lossless


@pytest.mark.oracle
@pytest.mark.skipif(not GPT2.is_dir(), reason="GPT-2's vocabulary is not at hand")
def test_gpt2s_three_formats_are_one_vocabulary():
    whole, words, ranked = (Tokenizer.load(GPT2 / name) for name in ("tokenizer.json", "encoder.json", "gpt2.tiktoken"))
    for text in strings(1000, seed=4):
        assert whole.encode(text) == words.encode(text) == ranked.encode(text)
    assert whole.special_ids == words.special_ids == ranked.special_ids == {"<|endoftext|>": 50_256}
    assert whole.bos == whole.end == whole.pad == 50_256
    assert whole.vocabulary_size == 50_257


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("published", "count"), [("r50k_base", 50_256), ("cl100k_base", 100_256), ("o200k_base", 199_998)]
)
def test_public_vocabularies_split_text_as_their_published_patterns_do(published: str, count: int, monkeypatch):
    """Their ranks are not at hand: some of our own, under each pattern, show the splits."""
    tiktoken = pytest.importorskip("tiktoken")
    from tiktoken_ext import openai_public

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: {})
    said, known = getattr(openai_public, published)(), ranks.KNOWN[count]
    assert said["special_tokens"] == dict(known.specials)
    table = {bytes([byte]): byte for byte in range(256)}
    for pair in (b"  ", b"\n\n", b" t", b"he", b" the", b"'s", b"00", b"000", b"\xd8\xa7", b"\xe3\x81", b"..", b"ee"):
        table[pair] = len(table)
    reference = tiktoken.Encoding(published, pat_str=said["pat_str"], mergeable_ranks=table, special_tokens={})
    definition = ranks.definition(table, ranks.Known(published, known.split, {"<|end|>": len(table)}))
    tokenizer = Tokenizer(definition, bos="<|end|>", pad="<|end|>", end="<|end|>", template=None)
    for text in [*strings(1000, seed=5), "It'S the\n\n  THE's 1000000 we'LL", "x\r\n\r\n  y\t \n"]:
        assert tokenizer.encode(text) == reference.encode_ordinary(text)


@pytest.mark.oracle
@pytest.mark.parametrize("template", [None, TURNS], ids=["as it came", "with a template"])
def test_transformers_reads_what_is_saved_and_gives_the_same_ids(foreign: Tokenizer, template: str | None, tmp_path):
    transformers = pytest.importorskip("transformers")
    opened = foreign.bos != foreign.end
    if template:
        foreign = foreign.with_template(template, tokens=["<|im_start|>"], end="<|im_end|>")
    foreign.save(tmp_path)
    model = "llama" if opened else "gpt2"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model}))  # a class of the family is not to be used
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == foreign.vocabulary_size
    for text in strings(300, seed=6):
        if not any(token in text for token in foreign.special_ids):  # theirs reads these as tokens
            assert theirs(text, add_special_tokens=False)["input_ids"] == foreign.encode(text)
    assert theirs("a b")["input_ids"] == [foreign.bos] * opened + foreign.encode("a b")
    assert (
        theirs.chat_template
        == template
        == json.loads((tmp_path / "tokenizer_config.json").read_text()).get("chat_template")
    )
    assert (theirs.bos_token, theirs.eos_token) == (foreign.bos_token, foreign.end_token)
    again = Tokenizer.load(tmp_path)
    assert (again.hash, again.ends, again.bos, again.pad) == (foreign.hash, foreign.ends, foreign.bos, foreign.pad)
    assert again.template == template


@pytest.mark.oracle
@pytest.mark.skipif(not GPT2.is_dir(), reason="GPT-2's vocabulary is not at hand")
def test_what_transformers_wrote_is_read_and_saved_again_as_it_was(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Qwen2Tokenizer(vocab=str(GPT2 / "encoder.json"), merges=str(GPT2 / "vocab.bpe"))
    theirs.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    theirs.add_tokens(["<think>", "</think>"])
    theirs.chat_template = TURNS
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = Tokenizer.load(tmp_path / "theirs")
    assert set(loaded.special_ids) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    assert (loaded.end_token, loaded.bos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>", "<|endoftext|>")
    assert loaded.ends == (loaded.special_ids["<|im_end|>"], 50_256)
    assert not loaded.lossless  # it composes characters
    loaded.save(tmp_path / "ours")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert again.special_tokens_map == theirs.special_tokens_map
    for text in [*strings(300, seed=7), "a <think> b</think>", "<think>"]:
        ids = theirs(text)["input_ids"]
        assert again(text)["input_ids"] == ids
        if "<|endoftext|>" not in text:
            assert loaded.encode(text) == ids


@pytest.mark.skipif(not LLAMA3.is_dir(), reason="Llama 3's vocabulary is not at hand")
def test_llama3s_special_tokens_are_where_its_models_have_them():
    loaded = Tokenizer.load(LLAMA3)
    places = {"<|begin_of_text|>": 128_000, "<|end_of_text|>": 128_001, "<|eot_id|>": 128_009}
    assert {token: loaded.special_ids[token] for token in places} == places
    assert (loaded.bos, loaded.end, loaded.vocabulary_size) == (128_000, 128_001, 128_256)
    assert "<|reserved_special_token_247|>" in loaded.special_ids
    assert not set(loaded.encode("<|eot_id|><|begin_of_text|>")) & set(loaded.special_ids.values())


def folder_of(folder: Path, tokenizer: Tokenizer, *specials: str, **files: object) -> Path:
    """Write a foreign folder: the vocabulary with tokens of its own, and JSON files by name."""
    bare = json.loads(tokenizer.definition)
    words = [token for token in bare["model"]["vocab"] if token not in tokenizer.special_ids]
    bare["model"]["vocab"] = {token: index for index, token in enumerate(words)}
    bare["added_tokens"] = [
        {"id": len(words) + index, "content": token} | ranks.FLAGS for index, token in enumerate(specials)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(bare), encoding="utf-8")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_several_tokens_may_end_a_text_and_the_template_says_which_closes_a_turn(small: Tokenizer, tmp_path: Path):
    tokens = ["<eos>", "<start_of_turn>", "<end_of_turn>", "<bos>"]
    template = "{% for m in messages %}{{ '<start_of_turn>' + m.content + '<end_of_turn>' }}{% endfor %}{{ eos_token }}"
    size = len(json.loads(small.definition)["model"]["vocab"]) - len(small.special_ids)
    folder = folder_of(
        tmp_path,
        small,
        *tokens,
        tokenizer_config={"eos_token": "<eos>", "chat_template": [{"name": "default", "template": template}]},
        generation_config={"eos_token_id": [size, size + 1], "bos_token_id": size + 3},
    )
    loaded = Tokenizer.load(folder)
    assert loaded.template == template
    assert loaded.end_token == "<end_of_turn>"
    assert loaded.ends == (size + 2, size, size + 1)
    assert loaded.bos_token == "<bos>"
    assert loaded.pad == size
    loaded.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())["eos_token"] == "<eos>"
    assert Tokenizer.load(tmp_path / "again").ends == loaded.ends


def test_names_of_special_tokens_come_from_any_of_four_files(small: Tokenizer, tmp_path: Path):
    for number, files in enumerate(
        (
            {"tokenizer_config": {"eos_token": {"content": "<e>"}}},
            {"special_tokens_map": {"eos_token": "<e>"}},
            {"generation_config": {"eos_token_id": small.vocabulary_size - 6}},
            {"config": {"eos_token_id": small.vocabulary_size - 6}},
        )
    ):
        loaded = Tokenizer.load(folder_of(tmp_path / str(number), small, "<e>", **files))
        assert loaded.end_token == loaded.bos_token == loaded.pad_token == "<e>"
        assert loaded.template is None


def test_a_vocabulary_without_an_end_says_so_when_it_is_needed(small: Tokenizer, tmp_path: Path):
    loaded = Tokenizer.load(folder_of(tmp_path, small))
    assert loaded.ends == ()
    assert loaded.decode(loaded.encode("some text")) == "some text"
    with pytest.raises(DataError, match="names no token that ends a text"):
        _ = loaded.end
    assert prepare(iter(()), TokenizerSettings(path=str(tmp_path))).end_token == "<|end|>"


def test_an_ordinary_added_token_is_text_and_a_marker_of_turns_never_is(small: Tokenizer, tmp_path: Path):
    folder = folder_of(tmp_path, small, "<think>", "<|im_end|>", tokenizer_config={"eos_token": "<|im_end|>"})
    content = json.loads((folder / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(content))
    loaded = Tokenizer.load(folder)
    assert list(loaded.special_ids) == ["<|im_end|>"]
    ids = loaded.encode("<think>a<|im_end|>")
    assert loaded.piece(ids[0]) == b"<think>"
    assert loaded.end not in ids
    assert loaded.decode(ids) == "<think>a<|im_end|>"


def test_words_and_merges_of_another_class_are_refused_by_name(tmp_path: Path):
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizerFast"}')
    with pytest.raises(DataError, match="belongs to a RobertaTokenizer"):
        Tokenizer.load(tmp_path)


def test_other_models_than_bpe_and_unigram_are_refused_by_name(small: Tokenizer, tmp_path: Path):
    for kind in ("WordPiece", "WordLevel"):
        content = json.loads(small.definition)
        content["model"] = {"type": kind, "vocab": {"a": 0}}
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=kind):
            Tokenizer.load(tmp_path)


def test_an_unknown_count_of_ranks_in_a_model_file_is_refused(tmp_path: Path):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256)))
    with pytest.raises(DataError, match=r"256 ranks.*Llama 3's \(128000\)"):
        Tokenizer.load(tmp_path)


def test_a_pretrained_vocabulary_that_loses_text_is_refused_for_training_anew(small: Tokenizer, tmp_path: Path):
    content = json.loads(small.definition)
    content["normalizer"] = {"type": "NFC"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert Tokenizer.load(tmp_path).decode(Tokenizer.load(tmp_path).encode("u\u0308")) == "ü"
    with pytest.raises(DataError, match="does not give back every text"):
        prepare(iter(()), TokenizerSettings(path=str(tmp_path)))


def test_another_tokenizer_than_the_models_is_refused_with_what_would_happen(small: Tokenizer):
    other = train([TEXT], TokenizerSettings(kind="character"))
    require_same(small, small.hash, model="runs/x")
    require_same(small, None, model="runs/x")
    with pytest.raises(TokenizerMismatch, match=r"read noise.*loss would start near ln 290 = 5\.7") as caught:
        require_same(small, other.hash, model="runs/x")
    assert "\n" not in str(caught.value)
    assert "runs/x" in str(caught.value)


def test_a_tokenizer_that_only_grew_is_still_the_models(small: Tokenizer, tmp_path: Path):
    grown = small.with_template("{{ 1 }}", tokens=["<|more|>"]).with_template("{{ 2 }}", tokens=["<|most|>"])
    require_same(grown, small.hash, model="runs/x")
    grown.save(tmp_path)
    require_same(Tokenizer.load(tmp_path), small.hash, model="runs/x")
    with pytest.raises(TokenizerMismatch):
        require_same(small, grown.hash, model="runs/x")


@pytest.mark.law
def test_a_special_token_among_the_words_is_not_found_even_where_whole_words_are_looked_up(small: Tokenizer):
    content = json.loads(small.definition)
    content["pre_tokenizer"] = ranks.BYTE_LEVEL  # nothing parts the text before it is looked up
    content["model"]["ignore_merges"] = True
    loaded = Tokenizer(json.dumps(content))
    for token, index in loaded.special_ids.items():
        assert content["model"]["vocab"][token] == index
        assert index not in loaded.encode(token)
        assert loaded.decode(loaded.encode(token)) == token
