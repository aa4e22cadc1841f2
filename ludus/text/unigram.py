"""The best way to cut a text into a SentencePiece Unigram model's pieces.

The tokenizers library sums scores in double precision and SentencePiece in single, which cuts `!!!` elsewhere where two
ways tie but for rounding; so the search is done here, with SentencePiece's sums.
"""

from array import array
from typing import Any

from ludus.text.alphabet import ordinary_added, raw_byte, special_tokens

_UNKNOWN_PENALTY = 10.0


class Lattice:
    """Cuts normalized text into pieces; what none covers becomes bytes where pieces stand for them, else unknown."""

    def __init__(self, content: dict[str, Any]) -> None:
        model = content["model"]
        entries: list[tuple[str, float]] = model["vocab"]
        numbers = {piece: index for index, (piece, _) in enumerate(entries)}
        names = [raw_byte(byte) for byte in range(256)]
        by_bytes = bool(model.get("byte_fallback")) and all(name in numbers for name in names)
        self._bytes = [numbers[name] for name in names] if by_bytes else []
        self._unknown: int = model["unk_id"]
        users = {token["content"] for token in ordinary_added(content)}
        others = {*special_tokens(content), entries[self._unknown][0], *(names if by_bytes else ())}
        normal = {piece: score for piece, score in entries if piece not in others and piece not in users}
        highest, lowest = max(normal.values()), min(normal.values())
        scores = normal | {piece: len(piece.encode()) * highest - 0.1 for piece in users}
        self._pieces = {piece: (numbers[piece], score) for piece, score in scores.items() if piece}
        self._longest: dict[str, int] = {}
        for piece in self._pieces:
            self._longest[piece[0]] = max(self._longest.get(piece[0], 0), len(piece))
        self._unknown_score = _single(lowest - _UNKNOWN_PENALTY)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a normalized text."""
        ids: list[int] = []
        before = None
        for index, piece in self._path(text):
            if index == self._unknown and self._bytes:
                ids += (self._bytes[byte] for byte in piece.encode())
            elif index != self._unknown or before != self._unknown:
                ids.append(index)
            before = index
        return ids

    def _path(self, text: str) -> list[tuple[int, str]]:
        size = len(text)
        best, starts, found = array("f", bytes(4 * (size + 1))), [-1] * (size + 1), [0] * (size + 1)
        for start, first in enumerate(text):
            here, alone = best[start], False
            for end in range(start + 1, min(size, start + self._longest.get(first, 0)) + 1):
                piece = self._pieces.get(text[start:end])
                if piece is not None:
                    alone = alone or end == start + 1
                    if starts[end] < 0 or _single(piece[1] + here) > best[end]:
                        best[end], starts[end], found[end] = piece[1] + here, start, piece[0]
            end = start + 1
            if not alone and (starts[end] < 0 or _single(self._unknown_score + here) > best[end]):
                best[end], starts[end], found[end] = self._unknown_score + here, start, self._unknown
        path: list[tuple[int, str]] = []
        while size:
            path.append((found[size], text[starts[size] : size]))
            size = starts[size]
        return path[::-1]


def _single(value: float) -> float:
    return array("f", [value])[0]
