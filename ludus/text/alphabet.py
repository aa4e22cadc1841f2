"""The bytes each token stands for.

A vocabulary spells its tokens in one of two ways: byte-level (every byte is a printable character, as GPT-2 has it) or
as characters, with `▁` for a space where it comes from SentencePiece and `<0x00>`..`<0xFF>` for whatever lacks a token.
This file reads both, and refuses vocabularies that lose text without saying so.
"""

import re
from collections.abc import Iterator
from typing import Any

from ludus.base.errors import DataError

ESCAPE = "▁"
_RAW_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# Markers of turns: special, even where a file calls them ordinary.
_MARKER = re.compile(r"<\|.*\|>|<(?:start|end)_of_turn>|\[/?INST\]|</?s>")
_MODELS = ("BPE", "Unigram")
_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Prepend", "Replace", "Precompiled", "Strip")
_WORD_SPLITTERS = ("WhitespaceSplit", "Whitespace", "BertPreTokenizer")


def byte_characters() -> dict[str, int]:
    """Return the byte-level alphabet: character -> byte.

    Printable Latin-1 characters stand for themselves; the other bytes take the characters from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def raw_byte(byte: int) -> str:
    """Spell a byte as the fallback token of a character vocabulary."""
    return f"<0x{byte:02X}>"


def parts(definition: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return the steps of a `normalizer`, `pre_tokenizer` or `decoder`, those of a sequence one by one."""
    return list(_flat(definition.get(key)))


def _flat(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if step and step.get("type") == "Sequence":
        for inner in next((value for value in step.values() if isinstance(value, list)), []):
            yield from _flat(inner)
    elif step:
        yield step


def vocabulary(definition: dict[str, Any]) -> dict[str, int]:
    """Return the model's tokens and their ids, without the added ones that only `added_tokens` names."""
    model = definition["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else None)
    if kind not in _MODELS:
        raise DataError(f"the tokenizer's model is {kind}; ludus reads {' and '.join(_MODELS)}")
    words = model["vocab"]
    if isinstance(words, list):
        return {piece: index for index, (piece, _) in enumerate(words)}
    return words


def special_tokens(definition: dict[str, Any]) -> dict[str, int]:
    """Return the tokens that no text may become: those called special, and markers of turns that are not."""
    return {token["content"]: token["id"] for token in definition["added_tokens"] if _is_special(token)}


def ordinary_added(definition: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the added tokens that text does become, such as `<think>` or a run of spaces."""
    return [token for token in definition["added_tokens"] if not _is_special(token)]


def _is_special(token: dict[str, Any]) -> bool:
    return bool(token.get("special", True) or _MARKER.fullmatch(token["content"]))


def escapes_spaces(definition: dict[str, Any]) -> bool:
    """Tell whether the vocabulary writes a space as `▁`."""
    spaces = any(_writes_escape(step) for step in parts(definition, "normalizer"))
    return spaces or any(step["type"] == "Metaspace" for step in parts(definition, "pre_tokenizer"))


def _writes_escape(step: dict[str, Any]) -> bool:
    return step["type"] == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == ESCAPE


def keeps_text(definition: dict[str, Any]) -> bool:
    """Tell whether text passes the normalizers and added tokens unchanged but for spaces that are written as `▁`."""
    steps = parts(definition, "normalizer")
    greedy = any(token.get("lstrip") or token.get("rstrip") for token in ordinary_added(definition))
    return not greedy and all(step["type"] == "Prepend" or _writes_escape(step) for step in steps)


def token_table(definition: dict[str, Any]) -> list[bytes]:
    """Return the bytes of every token by id, empty for special tokens and for unused ids.

    Raises `DataError` for a vocabulary that cannot write every byte string, unless it has a token for the unknown, and
    for one whose normalizer loses letters or words' limits.
    """
    words = vocabulary(definition)
    _refuse_loss(definition)
    added = {token["content"]: token["id"] for token in definition.get("added_tokens", [])}
    owners = words | added
    if len(set(owners.values())) < len(owners):
        raise DataError(
            "two tokens share an id: the vocabulary leaves ids out, so special tokens cannot be added to it"
        )
    escaped = escapes_spaces(definition)
    by_bytes = _by_bytes(definition, escaped)
    table = [b""] * (1 + max(owners.values(), default=-1))
    for token, index in words.items():
        if token not in added:
            table[index] = _spell_bytes(token) if by_bytes else _spell_characters(token, escaped)
    for token in ordinary_added(definition):
        content = token["content"].replace(ESCAPE, " ") if escaped else token["content"]
        table[token["id"]] = content.encode()
    unknown = definition["model"].get("unk_token") or definition["model"].get("unk_id") is not None
    if not writes_all_bytes(table) and (by_bytes or not unknown):
        raise DataError("the tokenizer lacks tokens for some bytes, so it cannot write every text; train a new one")
    return table


def writes_all_bytes(table: list[bytes]) -> bool:
    """Tell whether each byte has a token."""
    return len({entry for entry in table if len(entry) == 1}) == 256


def _refuse_loss(definition: dict[str, Any]) -> None:
    for step in parts(definition, "normalizer"):
        if step["type"] not in _NORMALIZERS:
            raise DataError(
                f"the tokenizer changes text before splitting it (normalizer {step['type']}); "
                "use one without that, or train one with `tokenizer.path=null`"
            )
    for step in parts(definition, "pre_tokenizer"):
        if step["type"] in _WORD_SPLITTERS:
            raise DataError(f"the tokenizer drops spaces and line ends (pre-tokenizer {step['type']}); use another")


def _by_bytes(definition: dict[str, Any], escaped: bool) -> bool:
    steps = [*parts(definition, "pre_tokenizer"), *parts(definition, "decoder")]
    level = any(step["type"] == "ByteLevel" for step in steps)
    return level or not (definition["model"].get("byte_fallback") or escaped)


def _spell_characters(token: str, escaped: bool) -> bytes:
    match = _RAW_BYTE.fullmatch(token)
    if match:
        return bytes([int(match[1], 16)])
    return (token.replace(ESCAPE, " ") if escaped else token).encode()


_BYTES = byte_characters()


def _spell_bytes(token: str) -> bytes:
    try:
        return bytes(_BYTES[character] for character in token)
    except KeyError:
        raise DataError(f"token {token!r} is not spelt in bytes; only byte-level vocabularies are lossless") from None
