"""The vocabulary of llama2.c (`tok512.bin`, `tokenizer.bin`) as a `tokenizer.json`.

Such a file is a SentencePiece BPE model with its spaces spelt out and its ids by place: 0 is unknown, 1 begins a text,
2 ends it. It is read into that model, and goes on from there.
"""

import re
import struct
from pathlib import Path

from ludus.base.errors import DataError
from ludus.text.alphabet import ESCAPE
from ludus.text.sentencepiece import BPE, BYTE, CONTROL, NORMAL, UNKNOWN, Model, Piece

_SPECIALS = (("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL))
_RAW_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_LONGEST = 1024  # bytes of a token; a file that says more is none


def read(path: Path) -> Model:
    """Read a llama2.c vocabulary: int32 longest token, then for each float32 score, int32 length, bytes."""
    data = path.read_bytes()
    pieces: list[Piece] = []
    place = 4
    try:
        while place < len(data):
            score, size = struct.unpack_from("<fi", data, place)
            text = data[place + 8 : place + 8 + size].decode()
            if not 0 < size <= _LONGEST or place + 8 + size > len(data):
                raise ValueError(f"it breaks off at byte {place}")
            pieces.append(_piece(len(pieces), text, score))
            place += 8 + size
        if len(pieces) < len(_SPECIALS) + 256:
            raise ValueError(f"it has {len(pieces)} tokens")
    except (struct.error, ValueError) as error:
        raise DataError(f"{path} is not a vocabulary of llama2.c that can be read: {error}") from None
    specials = {"bos_token": "<s>", "eos_token": "</s>"}
    return Model(pieces, BPE, byte_fallback=True, squeeze=False, specials=specials)


def _piece(index: int, text: str, score: float) -> Piece:
    if index < len(_SPECIALS):
        return Piece(_SPECIALS[index][0], score, _SPECIALS[index][1])
    return Piece(text.replace(" ", ESCAPE), score, BYTE if _RAW_BYTE.fullmatch(text) else NORMAL)


def beside(model: Path) -> Path | None:
    """Return the vocabulary that lies beside a llama2.c model: `tok<vocabulary>.bin`, else `tokenizer.bin`."""
    with model.open("rb") as file:
        header = file.read(28)
    if len(header) < 28:
        return None
    size = abs(struct.unpack("<7i", header)[5])  # negative where the head is not tied
    names = (model.with_name(f"tok{size}.bin"), model.with_name("tokenizer.bin"))
    return next((file for file in names if file.is_file() and file != model), None)
