"""The bytes each token stands for.

A vocabulary spells its tokens in one of two ways: byte-level (every byte is a printable character, as GPT-2 has it) or
as characters with `<0x00>`..`<0xFF>` for whatever lacks a token. Both can write any bytes; this file reads both, and
refuses vocabularies that could lose some.
"""

import re
from typing import Any

from ludus.base.errors import DataError

_RAW_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


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


def token_table(definition: dict[str, Any]) -> list[bytes]:
    """Return the bytes of every token by id, empty for added (special) tokens and for unused ids.

    Raises `DataError` for a vocabulary that cannot write every byte string, or that changes text before splitting it.
    """
    vocabulary: dict[str, int] = definition["model"].get("vocab", {})
    if not isinstance(vocabulary, dict) or definition["model"].get("type") != "BPE":
        raise DataError(
            f"the tokenizer's model is {definition['model'].get('type')}; only BPE vocabularies are lossless"
        )
    if definition.get("normalizer"):
        raise DataError(
            f"the tokenizer changes text before splitting it (normalizer {definition['normalizer'].get('type')}); "
            "use one without a normalizer, or train one with `tokenizer.path=null`"
        )
    spell = _spell_characters if definition["model"].get("byte_fallback") else _spell_bytes
    added = {token["content"]: token["id"] for token in definition.get("added_tokens", [])}
    owners = vocabulary | added
    if len(set(owners.values())) < len(owners):
        raise DataError(
            "two tokens share an id: the vocabulary leaves ids out, so special tokens cannot be added to it"
        )
    table = [b""] * (1 + max([*vocabulary.values(), *added.values()]))
    for token, index in vocabulary.items():
        table[index] = b"" if token in added else spell(token)
    if len({entry for entry in table if len(entry) == 1}) < 256:
        raise DataError("the tokenizer lacks tokens for some bytes, so it cannot write every text; train a new one")
    return table


def _spell_characters(token: str) -> bytes:
    match = _RAW_BYTE.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.encode()


_BYTES = byte_characters()


def _spell_bytes(token: str) -> bytes:
    try:
        return bytes(_BYTES[character] for character in token)
    except KeyError:
        raise DataError(f"token {token!r} is not spelt in bytes; only byte-level vocabularies are lossless") from None
