"""A SentencePiece model (`tokenizer.model`, `spiece.model`) as a `tokenizer.json`.

The file is a protobuf of which few fields matter, so it is read here and needs no library. BPE models become merges:
two pieces whose joint is a piece, the best score first. Unigram models keep their scores. What cannot be carried over
exactly is refused by name.
"""

import base64
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ludus.base.errors import DataError
from ludus.text.alphabet import ESCAPE
from ludus.text.ranks import FLAGS, opening

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
_KINDS = {3: "WORD", 4: "CHAR"}


class Piece(NamedTuple):
    """A token, how good it is, and what it is for (NORMAL, UNKNOWN, CONTROL, USER, UNUSED or BYTE)."""

    text: str
    score: float
    kind: int = NORMAL


@dataclass
class Model:
    """What a SentencePiece file says: its pieces by id, and how text is prepared for them."""

    pieces: Sequence[Piece]
    kind: int = BPE
    byte_fallback: bool = False
    charsmap: bytes = b""
    dummy_space: bool = True
    squeeze: bool = True  # spaces at the ends go, and several become one
    specials: dict[str, str] = field(default_factory=dict)  # bos_token, eos_token, pad_token


def is_model(head: bytes) -> bool:
    """Tell a SentencePiece file by its first bytes: a piece, in which text stands first."""
    return len(head) > 3 and head[0] == 0x0A and head[1] < 0x80 and head[2] == 0x0A


def read(path: Path) -> Model:
    """Read a SentencePiece file. Raises `DataError` if it is damaged, or of a kind that cannot be carried over."""
    try:
        pieces: list[Piece] = []
        trainer: dict[int, Any] = {}
        normalizer: dict[int, Any] = {}
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                said = dict(_fields(value))
                pieces.append(Piece(said.get(1, b"").decode(), _float(said.get(2, 0)), said.get(3, NORMAL)))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
    except (IndexError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise DataError(f"{path} is not a SentencePiece model that can be read: {error}") from None
    kind = trainer.get(3, UNIGRAM)
    if kind not in (UNIGRAM, BPE):
        raise DataError(
            f"{path} is a SentencePiece model of type {_KINDS.get(kind, kind)}; ludus reads BPE and UNIGRAM"
        )
    for name, asked in (
        ("treat_whitespace_as_suffix", trainer.get(24)),
        ("unescaped spaces", not normalizer.get(5, 1)),
    ):
        if asked:
            raise DataError(f"{path} is a SentencePiece model with {name}, which ludus cannot carry over exactly")
    return Model(
        pieces,
        kind,
        byte_fallback=bool(trainer.get(35)) or any(piece.kind == BYTE for piece in pieces),
        charsmap=normalizer.get(2, b""),
        dummy_space=bool(normalizer.get(3, 1)),
        squeeze=bool(normalizer.get(4, 1)),
        specials=_specials(pieces, trainer),
    )


def _specials(pieces: Sequence[Piece], trainer: dict[int, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for role, number, usual in (("bos_token", 41, 1), ("eos_token", 42, 2), ("pad_token", 43, -1)):
        index = trainer.get(number, usual)
        index -= 2**64 if index >= 2**63 else 0
        if 0 <= index < len(pieces) and pieces[index].kind == CONTROL:
            found[role] = pieces[index].text
    return found


def definition(model: Model) -> str:
    """Return the `tokenizer.json` of a SentencePiece model."""
    added = [
        {"id": index, "content": piece.text}
        | FLAGS
        | {"special": piece.kind != USER, "normalized": piece.kind == USER and ESCAPE in piece.text}
        for index, piece in enumerate(model.pieces)
        if piece.kind in (UNKNOWN, CONTROL, USER)
    ]
    first = model.specials.get("bos_token")
    numbers = {piece.text: index for index, piece in enumerate(model.pieces)}
    if len(numbers) < len(model.pieces):
        raise DataError("two pieces of the vocabulary have the same text, so one of them could never be read back")
    ends = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if model.dummy_space else []
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(model)},
        "pre_tokenizer": None,
        "post_processor": opening(first, numbers[first]) if first else None,
        "decoder": {
            "type": "Sequence",
            "decoders": [_replace({"String": ESCAPE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}, *ends],
        },
        "model": _bpe(model, numbers) if model.kind == BPE else _unigram(model),
    }
    return json.dumps(content, ensure_ascii=False)


def _normalizers(model: Model) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode()})
    if model.squeeze:
        steps += [
            _replace({"Regex": pattern}, with_) for pattern, with_ in ((r"\A +", ""), (r" +\z", ""), (" {2,}", " "))
        ]
    if model.dummy_space:
        steps.append({"type": "Prepend", "prepend": ESCAPE})
    return [*steps, _replace({"String": " "}, ESCAPE)]


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _bpe(model: Model, numbers: dict[str, int]) -> dict[str, Any]:
    unknown = next((piece.text for piece in model.pieces if piece.kind == UNKNOWN), None)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": numbers,
        "merges": _merges(model.pieces),
    }


def _merges(pieces: Sequence[Piece]) -> list[list[str]]:
    """Return every way to join two pieces to a third, the best third first.

    Of equal scores SentencePiece takes what stands furthest to the left: it lets one run grow before it begins another.
    Longer joints first, and of those longer beginnings, come to the same.
    """
    normal = {piece.text for piece in pieces if piece.kind == NORMAL}
    found: list[tuple[float, int, int, list[str]]] = []
    for piece in pieces:
        if piece.kind == NORMAL:
            for cut in range(1, len(piece.text)):
                left, right = piece.text[:cut], piece.text[cut:]
                if left in normal and right in normal:
                    found.append((-piece.score, -len(piece.text), -cut, [left, right]))
    return [pair for *_, pair in sorted(found, key=lambda entry: entry[:3])]


def _unigram(model: Model) -> dict[str, Any]:
    unknown = next((index for index, piece in enumerate(model.pieces) if piece.kind == UNKNOWN), None)
    return {
        "type": "Unigram",
        "unk_id": unknown,
        "vocab": [[piece.text, piece.score] for piece in model.pieces],
        "byte_fallback": model.byte_fallback,
    }


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield a protobuf message's fields by number: integers as they are, 4-byte values and bytes as bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        wire = key & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            size, place = _varint(data, place)
        if size is None or place + size > len(data):
            raise ValueError(f"it breaks off or is no protobuf at byte {place}")
        yield key >> 3, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place += 1
        shift += 7
        if byte < 0x80:
            return value, place


def _float(data: bytes | int) -> float:
    return struct.unpack("<f", data)[0] if isinstance(data, bytes) else float(data)
