"""Text to token ids on a vocabulary that has no special token at all, so that no text can become one (law 5).

SentencePiece puts a space before a text. That belongs to beginnings alone, and is lost in the middle of a conversation:
so the space is ours to put, and the vocabulary underneath never puts one. Bytes that are no text are `tokenizer.py`'s.
"""

import base64
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tokenizers

from ludus.base.errors import DataError
from ludus.text.alphabet import (
    ESCAPE,
    escapes_spaces,
    keeps_text,
    ordinary_added,
    parts,
    raw_byte,
    special_tokens,
    vocabulary,
)
from ludus.text.charsmap import Charsmap
from ludus.text.unigram import Lattice


class Encoder:
    """Encodes text without special tokens.

    `prefix` is how a beginning gets a space: "" not at all, "always", "once" (unless the text begins with one), or
    "file" (as the definition's own steps do it, because they change the text in other ways too). `again` says whether
    text after a special token is a beginning as well.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        self.prefix, self.again = _prefix(content)
        self.keeps_text = keeps_text(content) and self.prefix not in ("once", "file")
        tables = [
            step["precompiled_charsmap"] for step in parts(content, "normalizer") if step["type"] == "Precompiled"
        ]
        self._tables = [Charsmap(base64.b64decode(table)) for table in tables if table]
        bare = _without_charsmap(_without_specials(content))
        self._inner = _built(bare | _without_prefix(bare))
        self._first = _built(bare) if self.prefix == "file" else self._inner
        self.characters = _characters(content)
        self._unknown, self._bytes = _fallback(content)
        whole = isinstance(content["model"]["vocab"], list) and not content["pre_tokenizer"]
        self._lattice = Lattice(content) if whole else None
        self.opening: list[int] = self.encode(" ", beginning=False) if self.prefix else []

    def encode(self, text: str, *, beginning: bool) -> list[int]:
        """Return the ids of a text. Raises `TypeError` for one that UTF-8 cannot hold."""
        rust = self._first if beginning else self._inner
        begun = self._begun(text) if beginning else text
        if self._lattice is not None:
            return self._lattice.encode(rust.normalizer.normalize_str(self._normalized(begun)))
        return self._ids(rust.encode(self._normalized(begun), add_special_tokens=False))

    def batch(self, texts: Sequence[str], *, beginning: bool) -> Iterable[Sequence[int]]:
        """Encode many texts on all cores. Raises `TypeError` where one is bytes, or no UTF-8."""
        if self._lattice is not None:
            return (self.encode(text, beginning=beginning) for text in texts)
        rust = self._first if beginning else self._inner
        begun = [self._begun(text) for text in texts] if beginning and self.prefix else texts
        begun = [self._normalized(text) for text in begun] if self._tables else begun
        return (self._ids(encoding) for encoding in rust.encode_batch_fast(begun, add_special_tokens=False))

    def _ids(self, encoding: tokenizers.Encoding) -> list[int]:
        """Return an encoding's ids; of a Unigram model the unknown becomes bytes here."""
        if not self._bytes or self._unknown not in encoding.ids:
            return encoding.ids
        pairs = zip(encoding.ids, encoding.tokens, strict=True)
        return [
            index
            for token, text in pairs
            for index in ([self._bytes[byte] for byte in text.encode()] if token == self._unknown else [token])
        ]

    def _normalized(self, text: str) -> str:
        for table in self._tables:
            try:
                text = table.apply(text)
            except UnicodeEncodeError:
                raise TypeError("a lone surrogate") from None
        return text

    def _begun(self, text: str) -> str:
        if not isinstance(text, str):
            raise TypeError("bytes")
        if not text or self.prefix not in ("always", "once"):
            return text
        return text if self.prefix == "once" and text.startswith((" ", ESCAPE)) else " " + text


def _prefix(content: dict[str, Any]) -> tuple[str, bool]:
    """Return how a beginning gets its space, and whether every text after a special token is one."""
    normalizers = parts(content, "normalizer")
    if any(step["type"] == "Prepend" for step in normalizers):
        return ("always" if keeps_text(content) else "file"), True
    for step in parts(content, "pre_tokenizer"):
        scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
        if step["type"] == "Metaspace" and scheme != "never":
            return ("once" if all(step["type"] == "Replace" for step in normalizers) else "file"), scheme == "always"
        if step["type"] == "ByteLevel" and step.get("add_prefix_space"):
            return "once", True
    return "", False


def _without_prefix(content: dict[str, Any]) -> dict[str, Any]:
    """Return the steps changed so that the middle of a text stays as it is at both ends."""
    kept = [step for step in parts(content, "normalizer") if not _is_of_ends(step)]
    splits = [_splitting_only(step) for step in parts(content, "pre_tokenizer")]
    return {
        "normalizer": {"type": "Sequence", "normalizers": kept} if kept else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits} if splits else None,
    }


def _without_charsmap(content: dict[str, Any]) -> dict[str, Any]:
    """Return the definition without the table of characters, which is followed before it."""
    kept = [step for step in parts(content, "normalizer") if step["type"] != "Precompiled"]
    return content | {"normalizer": {"type": "Sequence", "normalizers": kept} if kept else None}


def _is_of_ends(step: dict[str, Any]) -> bool:
    pattern = str((step.get("pattern") or {}).get("Regex", ""))
    return step["type"] in ("Prepend", "Strip") or pattern.startswith(("^", r"\A")) or pattern.endswith(("$", r"\z"))


def _splitting_only(step: dict[str, Any]) -> dict[str, Any]:
    if step["type"] == "ByteLevel":
        return step | {"add_prefix_space": False}
    if step["type"] == "Metaspace":
        kept = {key: value for key, value in step.items() if key != "add_prefix_space"}
        return kept | {"prepend_scheme": "never"}
    return step


def _without_specials(content: dict[str, Any]) -> dict[str, Any]:
    """Return the definition with no special tokens in it, nothing cut, nothing padded."""
    specials, model, ordinary = special_tokens(content), content["model"], ordinary_added(content)
    if isinstance(model["vocab"], list):
        unreadable = {
            model["vocab"][index][0] for index in (model.get("unk_id"), *_fallback(content)[1]) if index is not None
        }
        words: Any = [
            # No text has a space left by the time it is looked up, so such a piece is never found.
            [f" {index}" if piece in specials or piece in unreadable else piece, score]
            for index, (piece, score) in enumerate(model["vocab"])
        ]
        model = model | {"byte_fallback": False}
        if not escapes_spaces(content):
            raise DataError("the tokenizer is a Unigram model without SentencePiece's spaces; ludus cannot read it")
    else:
        unknown = None if model.get("byte_fallback") else model.get("unk_token")
        # Added tokens among the words keep their ids; no merge makes them.
        words = vocabulary(content) | {token["content"]: token["id"] for token in ordinary}
        words = {token: index for token, index in words.items() if token not in specials or token == unknown}
        model = model | {"unk_token": unknown}
    return content | {
        "model": model | {"vocab": words},
        "added_tokens": ordinary,
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }


def _fallback(content: dict[str, Any]) -> tuple[int | None, list[int]]:
    """Return the unknown's id and those of the bytes, of a Unigram model that writes the unknown in bytes.

    Left to itself such a model would take a byte's name in a text, `<0x41>`, for the byte.
    """
    model = content["model"]
    if not isinstance(model["vocab"], list) or not model.get("byte_fallback"):
        return None, []
    numbers = {piece: index for index, (piece, _) in enumerate(model["vocab"])}
    names = [raw_byte(byte) for byte in range(256)]
    complete = all(name in numbers for name in names)
    return (model.get("unk_id"), [numbers[name] for name in names]) if complete else (None, [])


def _built(content: dict[str, Any]) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the rust side raises bare Exception
        raise ValueError(str(error)) from None


def _characters(content: dict[str, Any]) -> np.ndarray | None:
    """Return token ids by character, -1 for those without one, for a vocabulary that has nothing else."""
    model = content["model"]
    steps = content["pre_tokenizer"] or content.get("normalizer") or ordinary_added(content)
    if steps or model.get("merges") or not model.get("byte_fallback") or model.get("ignore_merges"):
        return None
    if not isinstance(model["vocab"], dict):
        return None
    added = special_tokens(content)
    ids = {ord(token): index for token, index in model["vocab"].items() if len(token) == 1 and token not in added}
    table = np.full(max(256, max(ids, default=0) + 2), -1, np.int64)  # the last place is for all characters beyond
    table[list(ids)] = list(ids.values())
    return table
