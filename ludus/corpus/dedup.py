"""Documents that say the same: exact copies by hash, near copies by MinHash.

MinHash (Broder 1997): the share of equal minima under random hash functions estimates the share of word 5-grams that
two documents have in common. 20 bands of 6 rows bring together pairs that share some 60 % or more; those are then
measured on all 120 minima. Hashes depend on the words alone, so every machine finds the same pairs.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

BANDS, ROWS = 20, 6
SHINGLE_WORDS = 5
SIMILAR = 0.7

_WORDS = re.compile(r"\w+")
_BATCH_SHINGLES = 50_000


def fingerprint(text: str) -> bytes:
    """Hash what a text says, whatever its case and its white space."""
    return _hash(_normal(text), 16)


def leaders(texts: Sequence[str]) -> list[int]:
    """Return for each text the first kept text that it nearly copies, or itself; keep those that are their own."""
    buckets = _Buckets(_signatures(texts))
    found = []
    for index in range(len(texts)):
        alike = buckets.alike(index)
        found.append(alike[0] if alike else index)
        if not alike:
            buckets.enter(index)
    return found


def families(texts: Sequence[str]) -> list[int]:
    """Return for each text the first text that a chain of near copies connects it to."""
    buckets = _Buckets(_signatures(texts))
    parent = list(range(len(texts)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    for index in range(len(texts)):
        for other in buckets.alike(index):
            first, second = sorted((root(other), root(index)))
            parent[second] = first
        buckets.enter(index)
    return [root(index) for index in range(len(texts))]


class _Buckets:
    """The texts entered so far, found again by each band of their signature."""

    def __init__(self, signatures: np.ndarray) -> None:
        self.signatures = signatures
        keys = np.zeros((len(signatures), BANDS), np.uint64)
        for row in range(ROWS):
            keys = _mixed(keys + signatures[:, row::ROWS])
        self.keys: list[list[int]] = keys.tolist()
        self.bands: list[dict[int, list[int]]] = [{} for _ in range(BANDS)]

    def enter(self, index: int) -> None:
        for band, key in zip(self.bands, self.keys[index], strict=True):
            band.setdefault(key, []).append(index)

    def alike(self, index: int) -> list[int]:
        """Return the entered texts that share a band with this one and enough of all minima, in order."""
        near = {other for band, key in zip(self.bands, self.keys[index], strict=True) for other in band.get(key, ())}
        if not near:
            return []
        others = np.array(sorted(near))
        agreement = np.mean(self.signatures[others] == self.signatures[index], axis=1)
        return others[agreement >= SIMILAR].tolist()


def _signatures(texts: Sequence[str]) -> np.ndarray:
    """Return the minima of every text under BANDS x ROWS hash functions."""
    generator = np.random.Generator(np.random.PCG64(20_240_229))
    factors = generator.integers(1, 2**63, BANDS * ROWS, dtype=np.uint64) | np.uint64(1)
    summands = generator.integers(0, 2**63, BANDS * ROWS, dtype=np.uint64)
    signatures = np.zeros((len(texts), BANDS * ROWS), np.uint32)
    for first, shingles in _batches(texts):
        lengths = [len(row) for row in shingles]
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        hashed = np.concatenate(shingles)
        for column, (factor, summand) in enumerate(zip(factors, summands, strict=True)):
            values = ((hashed * factor + summand) >> np.uint64(32)).astype(np.uint32)
            signatures[first : first + len(shingles), column] = np.minimum.reduceat(values, starts)
    return signatures


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yield (index of the first text, shingles of some texts), about as many at a time as fit into a cache."""
    known: dict[str, int] = {}
    first, waiting, size = 0, [], 0
    for index, text in enumerate(texts):
        waiting.append(_shingles(text, known))
        size += len(waiting[-1])
        if size >= _BATCH_SHINGLES:
            yield first, waiting
            first, waiting, size = index + 1, [], 0
    if waiting:
        yield first, waiting


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
