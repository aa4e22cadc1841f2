"""SentencePiece's table of characters (`nmt_nfkc` and the like): the longest match is replaced, from left to right.

The table is a double array of the Darts kind and the texts it points to. The tokenizers library reads it too, but goes
by graphemes, which changes other texts than SentencePiece does; so it is followed here.
"""

import struct
from functools import lru_cache

_LEAF, _WIDE, _LABEL = 1 << 8, 1 << 9, (1 << 31) | 0xFF


class Charsmap:
    """Replaces characters as a `precompiled_charsmap` says. Raises `ValueError` for a table that is damaged."""

    def __init__(self, table: bytes) -> None:
        size = struct.unpack_from("<I", table)[0]
        if size % 4 or 4 + size > len(table):
            raise ValueError("the table of characters breaks off")
        self._units = struct.unpack_from(f"<{size // 4}I", table, 4)
        self._texts = table[4 + size :]
        self._changed = {code for code in range(128) if self._longest(bytes([code]), 0)[1] is not None}
        self.apply = lru_cache(maxsize=4096)(self._apply)

    def _apply(self, text: str) -> str:
        """Return a text with everything replaced."""
        if text.isascii() and self._changed.isdisjoint(map(ord, text)):
            return text
        data, place = text.encode(), 0
        found: list[bytes] = []
        while place < len(data):
            size, replaced = self._longest(data, place)
            if replaced is None:
                size = 1 + sum(data[place] >= lead for lead in (0xC0, 0xE0, 0xF0))
                replaced = data[place : place + size]
            found.append(replaced)
            place += size
        return b"".join(found).decode()

    def _longest(self, data: bytes, start: int) -> tuple[int, bytes | None]:
        """Return how many bytes from `start` are replaced, and what by; None if nothing is."""
        units, best = self._units, (0, None)
        node = _offset(units[0])
        for place in range(start, len(data)):
            node ^= data[place]
            if node >= len(units) or units[node] & _LABEL != data[place] or not data[place]:
                break
            unit = units[node]
            node ^= _offset(unit)
            if unit & _LEAF:
                first = units[node] & 0x7FFFFFFF
                best = place + 1 - start, self._texts[first : self._texts.index(0, first)]
        return best


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & _WIDE) >> 6)
