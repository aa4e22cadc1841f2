"""Which format a tokenizer's files have, and their `tokenizer.json`.

A folder may hold several formats; the first that is known here counts: `tokenizer.json`, SentencePiece, ranks, GPT-2's
words and merges, llama2.c. Reading adds no token. What special tokens are for is decided in `roles.py`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ludus.base.errors import DataError
from ludus.text import llama2c, ranks, sentencepiece
from ludus.text.template import ENDOFTEXT

_WORDS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model")
_CLASSES = {"GPT2Tokenizer": None, "CodeGenTokenizer": None, "Qwen2Tokenizer": "NFC"}
EXPECTED = "a tokenizer.json, a tokenizer.model, a *.tiktoken file, vocab.json with merges.txt, or llama2.c's tok*.bin"


def file_of(path: Path) -> Path:
    """Return the file that says what a folder's tokens are, or the file itself. Raises `DataError` if there is none."""
    if path.is_dir():
        fixed = [path / name for name in (*_FILES, *(words for words, _ in _WORDS))]
        found = [*fixed, *sorted(path.glob("*.tiktoken")), *sorted(path.glob("tok*.bin"))]
        file = next((file for file in found if file.is_file()), None)
        if file is None:
            raise DataError(f"no tokenizer at {path}; give a folder that holds {EXPECTED}")
        return file
    if path.suffix == ".bin" and path.is_file() and not path.name.startswith("tok"):
        vocabulary = llama2c.beside(path)
        if vocabulary is None:
            raise DataError(f"no tokenizer beside {path}; put its tok<vocabulary>.bin or tokenizer.bin there")
        return vocabulary
    return path


def definition_of(file: Path, configuration: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Return a file's `tokenizer.json` and the special tokens (`bos_token`, ...) that the format itself names."""
    if file.suffix == ".tiktoken":
        return _of_ranks(file)
    if file.suffix == ".model":
        if not sentencepiece.is_model(file.read_bytes()[:4]):
            return _of_ranks(file)
        model = sentencepiece.read(file)
        return _with_added(sentencepiece.definition(model), configuration), model.specials
    if file.suffix == ".bin":
        model = llama2c.read(file)
        return sentencepiece.definition(model), model.specials
    merges = next((file.with_name(merges) for words, merges in _WORDS if words == file.name), None)
    if merges is not None:
        return _with_added(_of_words(file, merges, configuration), configuration), {}
    return file.read_text(encoding="utf-8"), {}


def _of_ranks(file: Path) -> tuple[str, dict[str, str]]:
    found = ranks.read_ranks(file)
    known = ranks.KNOWN[len(found)]
    return ranks.definition(found, known), {}


def _of_words(words: Path, merges: Path, configuration: Mapping[str, Any]) -> str:
    """Read GPT-2's two files. How text is split they do not say; the class of the tokenizer does."""
    named = str(configuration.get("tokenizer_class") or "GPT2Tokenizer").removesuffix("Fast")
    if named not in _CLASSES:
        raise DataError(
            f"{words} belongs to a {named}, and its words do not say how that splits text; ludus knows "
            f"{', '.join(_CLASSES)}; give a tokenizer.json instead"
        )
    lines = merges.read_text(encoding="utf-8").split("\n")
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    strange = next((pair for pair in pairs if len(pair) != 2), None)
    if strange:
        raise DataError(f"{merges} is not a list of merges: it has the line {' '.join(strange)!r}")
    numbers = json.loads(words.read_text(encoding="utf-8"))
    normalizer = _CLASSES[named]
    specials = {ENDOFTEXT: numbers[ENDOFTEXT]} if ENDOFTEXT in numbers else {}
    split = ranks.QWEN_SPLIT if normalizer else ranks.GPT2_SPLIT
    return ranks.byte_level(numbers, pairs, specials, split=split, normalizer=normalizer)


def _with_added(definition: str, configuration: Mapping[str, Any]) -> str:
    """Give a definition the added tokens, with their ids, that lie beside formats which cannot hold them."""
    content = json.loads(definition)
    there = {token["content"] for token in content["added_tokens"]}
    found = dict(configuration.get("added_tokens_decoder") or {})
    listed = {entry["content"] for entry in found.values()}
    found |= {
        str(index): {"content": token, "special": token in _named(configuration)}
        for token, index in (configuration.get("added_tokens") or {}).items()
        if token not in listed
    }
    for index, token in sorted(found.items(), key=lambda pair: int(pair[0])):
        if token["content"] not in there:
            flags = {key: bool(token.get(key, value and key != "special")) for key, value in ranks.FLAGS.items()}
            content["added_tokens"].append({"id": int(index), "content": token["content"]} | flags)
    return json.dumps(content, ensure_ascii=False)


def _named(configuration: Mapping[str, Any]) -> set[str]:
    values = [value for key, value in configuration.items() if key.endswith("_token")]
    values += configuration.get("additional_special_tokens") or []
    return {str(value["content"] if isinstance(value, dict) else value) for value in values}
