"""Documents that say the same: exact copies by hash, near copies by MinHash.

MinHash (Broder 1997): the share of equal minima under random hash functions estimates the share of word 5-grams that
two documents have in common. 20 bands of 6 rows bring together pairs that share some 60 % or more; those are then
measured on all 120 minima. Hashes depend on the words alone, so every machine finds the same pairs.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

BANDS, ROWS = 20, 6
SHINGLE_WORDS = 5
SIMILAR = 0.7

_WORDS = re.compile(r"\w+")
_BATCH_SHINGLES = 50_000
_KNOWN_WORDS = 1_000_000  # remembered with their hashes, which are only a saving


def fingerprint(text: str) -> bytes:
    """Hash what a text says, whatever its case and its white space."""
    return _hash(_normal(text), 16)


def leaders(texts: Sequence[str]) -> list[int]:
    """Return for each text the first kept text that it nearly copies, or itself; keep those that are their own."""
    index, found = Index(), []
    for number, (_, alike) in enumerate(index.compared(texts)):
        found.append(alike[0] if alike else number)
        if not alike:
            index.enter(number)
    return found


def families(texts: Sequence[str]) -> list[int]:
    """Return for each text the first text that a chain of near copies connects it to."""
    kin = Kin()
    for _ in kin.grouped(texts):
        pass
    return kin.roots()


class Index:
    """The texts entered so far, found again by each band of their signature. About 4 KB a text."""

    def __init__(self) -> None:
        self.signatures: dict[int, np.ndarray] = {}
        self.bands: list[dict[int, list[int]]] = [{} for _ in range(BANDS)]
        self._now: tuple[np.ndarray, list[int]] | None = None

    def compared(self, texts: Iterable[str]) -> Iterator[tuple[str, list[int]]]:
        """Yield each text with the numbers of entered texts that are nearly the same; `enter` it before the next.

        A text that is the only one is compared with nothing, whatever its length.
        """
        number = 0
        for batch, signatures in _signed(texts):
            keys = _keys(signatures).tolist() if len(signatures) else [[]]
            for text, signature, bands in zip(batch, signatures if len(signatures) else [_ALONE], keys, strict=True):
                self._now = signature, bands
                yield text, self._alike(signature, bands)
                number += 1

    def enter(self, number: int) -> None:
        """Enter the text last compared under a number."""
        assert self._now is not None
        signature, keys = self._now
        self.signatures[number] = signature
        for band, key in zip(self.bands, keys, strict=False):
            band.setdefault(key, []).append(number)

    def _alike(self, signature: np.ndarray, keys: list[int]) -> list[int]:
        """Return the entered texts that share a band with this one and enough of all minima, in order."""
        near = {other for band, key in zip(self.bands, keys, strict=False) for other in band.get(key, ())}
        if not near:
            return []
        others = sorted(near)
        agreement = np.mean(np.stack([self.signatures[other] for other in others]) == signature, axis=1)
        return np.array(others)[agreement >= SIMILAR].tolist()


class Kin:
    """Texts grouped by chains of near copies, found while they pass."""

    def __init__(self) -> None:
        self._index, self._parent = Index(), list[int]()

    def grouped(self, texts: Iterable[str]) -> Iterator[str]:
        """Pass the texts on, noting which belong together."""
        for text, alike in self._index.compared(texts):
            number = len(self._parent)
            self._parent.append(number)
            for other in alike:
                first, second = sorted((self._root(other), self._root(number)))
                self._parent[second] = first
            self._index.enter(number)
            yield text

    def __len__(self) -> int:
        return len(self._parent)

    def forget(self) -> None:
        """Let go of the index; what passed is no longer grouped."""
        self._index = Index()

    def roots(self) -> list[int]:
        """Return for each text the first of its group."""
        return [self._root(number) for number in range(len(self._parent))]

    def _root(self, number: int) -> int:
        parent = self._parent
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number


_ALONE = np.zeros(0, np.uint32)


def _signed(texts: Iterable[str]) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield texts in batches with their minima under BANDS x ROWS hash functions; none for a text that is alone."""
    generator = np.random.Generator(np.random.PCG64(20_240_229))
    factors = generator.integers(1, 2**63, BANDS * ROWS, dtype=np.uint64) | np.uint64(1)
    summands = generator.integers(0, 2**63, BANDS * ROWS, dtype=np.uint64)
    for batch, shingles in _batches(texts):
        if not shingles:
            yield batch, np.zeros((0, BANDS * ROWS), np.uint32)
            continue
        lengths = [len(row) for row in shingles]
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        hashed = np.concatenate(shingles)
        signatures = np.zeros((len(batch), BANDS * ROWS), np.uint32)
        for column, (factor, summand) in enumerate(zip(factors, summands, strict=True)):
            values = ((hashed * factor + summand) >> np.uint64(32)).astype(np.uint32)
            signatures[:, column] = np.minimum.reduceat(values, starts)
        yield batch, signatures


def _keys(signatures: np.ndarray) -> np.ndarray:
    keys = np.zeros((len(signatures), BANDS), np.uint64)
    for row in range(ROWS):
        keys = _mixed(keys + signatures[:, row::ROWS])
    return keys


def _batches(texts: Iterable[str]) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """Yield texts with their shingles, about as many at a time as fit into a cache; a text alone without them."""
    known: dict[str, int] = {}
    waiting: list[str] = []
    shingles: list[np.ndarray] = []
    size, alone = 0, True
    for text in texts:
        if len(known) > _KNOWN_WORDS:
            known.clear()
        if waiting and alone:  # only now is there anything to compare the first with
            shingles, alone = [_shingles(waiting[0], known)], False
            size += len(shingles[0])
        waiting.append(text)
        if not alone:
            shingles.append(_shingles(text, known))
            size += len(shingles[-1])
        if size >= _BATCH_SHINGLES:
            yield waiting, shingles
            waiting, shingles, size = [], [], 0
    if waiting:
        yield waiting, shingles


def _shingles(text: str, known: dict[str, int]) -> np.ndarray:
    """Return the hash of each run of five words, or of the whole text where there are fewer; never empty."""
    words = _WORDS.findall(text.lower())
    if len(words) < SHINGLE_WORDS:
        return np.array([int.from_bytes(_hash(_normal(text), 8), "little")], np.uint64)
    for word in words:
        if word not in known:
            known[word] = int.from_bytes(_hash(word, 8), "little")
    hashes = np.array([known[word] for word in words], np.uint64)
    count = len(hashes) - SHINGLE_WORDS + 1
    shingles = np.zeros(count, np.uint64)
    for place in range(SHINGLE_WORDS):
        shingles = shingles * np.uint64(0x9E3779B97F4A7C15) + hashes[place : place + count]
    return _mixed(shingles)


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


def _hash(text: str, size_bytes: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=size_bytes).digest()


def _mixed(values: np.ndarray) -> np.ndarray:
    """Spread every input bit over all output bits (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
