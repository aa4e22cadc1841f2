"""What tuning has cost: bits per byte of general text, before and after.

What lives here: the measure, the text it is taken on when a person names none, and an interval for its change. What
does not: tuning. The one idea: both models are measured on the very same documents, so the change has the interval of
a paired difference, which is far narrower than that of either figure.
"""

import hashlib
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ludus.base.console import say
from ludus.base.errors import DataError
from ludus.corpus.document import Reading
from ludus.corpus.files import file_documents
from ludus.corpus.interpreter import SOURCE, interpreter_documents
from ludus.data.pairs import Example
from ludus.evaluation.likelihood import likelihoods
from ludus.model.transformer import Transformer
from ludus.text.tokenizer import Tokenizer

LIMIT_BYTES = 100_000
PART_BYTES = 2_000  # longer documents are parted into pieces of about this, so that there are many
READ_BYTES = 32_000_000  # of which the sample is taken; the rest of a larger corpus is not read


@dataclass(frozen=True)
class BitsPerByte:
    """Bits a model needs for a byte. `nats` and `sizes` (bytes) are those of each document, `text` is their hash."""

    bits: float
    bytes: int
    tokens: int
    nats: tuple[float, ...] = ()
    sizes: tuple[int, ...] = ()
    text: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return what is written."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "BitsPerByte":
        """Take it back."""
        return cls(**{**found, "nats": tuple(found["nats"]), "sizes": tuple(found["sizes"])})


@dataclass(frozen=True)
class Forgetting:
    """The change of bits per byte, with its 95 % interval over documents; more bits mean that something was lost.

    The interval is (-inf, inf) where there are too few documents to tell.
    """

    before: float
    after: float
    difference: float
    low: float
    high: float
    documents: int
    verdict: Literal["forgotten", "improved", "within noise"]


def bits_per_byte(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Sequence[str] | Path | str | None = None,
    *,
    context: int,
    rows: int = 8,
    limit_bytes: int | None = LIMIT_BYTES,
) -> BitsPerByte:
    """Measure a model on texts, on those of a file or folder, or without either on Python's own documentation.

    Each document follows the beginning token. One of more than `context` tokens is read in windows of `context` that
    move on by half of it: each token counts once, and has at least half a context before it.

    Raises:
        DataError: there is no text.
    """
    chosen = (
        sample(texts, limit_bytes)
        if isinstance(texts, Sequence) and not isinstance(texts, str)
        else general(texts, limit_bytes)
    )
    examples: list[Example] = []
    owners: list[int] = []
    for number, text in enumerate(chosen):
        found = windows([tokenizer.bos, *tokenizer.encode(text)], context)
        examples += found
        owners += [number] * len(found)
    measured = likelihoods(model, examples, rows=rows, pad_token=tokenizer.pad)
    nats = np.zeros(len(chosen))
    np.add.at(nats, owners, [each.nats for each in measured])
    sizes = [len(text.encode("utf-8", "surrogatepass")) for text in chosen]
    bits = float(nats.sum()) / math.log(2) / sum(sizes)
    tokens = sum(each.tokens for each in measured)
    return BitsPerByte(bits, sum(sizes), tokens, tuple(nats.tolist()), tuple(sizes), _hash("\0".join(chosen)))


def windows(tokens: Sequence[int], context: int) -> list[Example]:
    """Cut a document into windows of at most `context` predictions; each token but the first has weight 1 in one."""
    step = max(1, context // 2)
    found: list[Example] = []
    start, done = 0, 1  # `done` tokens need no prediction any more
    while done < len(tokens):
        stop = min(len(tokens), start + context + 1)
        weights = np.zeros(stop - start, dtype=np.float32)
        weights[done - start :] = 1
        found.append((np.array(tokens[start:stop], dtype=np.int64), weights))
        start, done = start + step, stop
    return found


def general(path: Path | str | None = None, limit_bytes: int | None = LIMIT_BYTES) -> list[str]:
    """Return general text to measure on: of a file or folder, or the documentation of the Python standard library.

    A sample that is the same each time: documents in the order of their hashes, up to `limit_bytes`.
    """
    if path is None:
        source = (document.text for document in interpreter_documents(SOURCE.format(*sys.version_info)))
    else:
        source = (document.text for document in file_documents(Path(path).expanduser(), "", "", Reading()))
    return sample([part for text in _read(source) for part in parts(text)], limit_bytes)


def parts(text: str) -> Iterator[str]:
    """Part a document into pieces of about `PART_BYTES`, so that a book is not one document.

    At a blank line where there is one in time, else at a line's end, else anywhere.
    """
    gathered, size = [], 0
    for line in text.splitlines(keepends=True):
        for start in range(0, len(line), 4 * PART_BYTES):
            gathered.append(line[start : start + 4 * PART_BYTES])
            size += len(gathered[-1])
            if size >= 2 * PART_BYTES or (size >= PART_BYTES and not line.strip()):
                yield "".join(gathered)
                gathered, size = [], 0
    if gathered:
        yield "".join(gathered)


def sample(texts: Sequence[str], limit_bytes: int | None) -> list[str]:
    """Return texts up to a limit, in the order of their hashes where that leaves some out; the last may be cut short.

    Raises:
        DataError: no text has any content.
    """
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise DataError("there is no text to measure forgetting on; name a file or folder that holds some")
    sizes = [len(text.encode("utf-8", "surrogatepass")) for text in texts]
    if limit_bytes is None or sum(sizes) <= limit_bytes:
        return texts
    chosen, room = [], limit_bytes
    for text in sorted(texts, key=_hash):
        cut = text.encode("utf-8", "surrogatepass")[:room].decode("utf-8", "ignore")
        if cut.strip():
            chosen.append(cut)
        room -= len(cut.encode("utf-8", "surrogatepass"))
        if room <= 0 or len(cut) < len(text):
            break
    return chosen


def forgetting(
    before: BitsPerByte, after: BitsPerByte, *, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> Forgetting:
    """Compare two measures of the same texts: a percentile bootstrap that draws documents, the same for both.

    Raises:
        DataError: they were not taken on the same texts.
    """
    if before.text != after.text or before.sizes != after.sizes:
        raise DataError("bits per byte before and after are of different texts; measure both models on the same ones")
    difference, low, high = after.bits - before.bits, -math.inf, math.inf
    count = len(before.sizes)
    if count > 1:
        low, high = paired_bootstrap(
            np.subtract(after.nats, before.nats) / math.log(2), before.sizes, confidence, resamples, seed
        )
    verdict: Literal["forgotten", "improved", "within noise"] = (
        "forgotten" if low > 0 else "improved" if high < 0 else "within noise"
    )
    return Forgetting(before.bits, after.bits, difference, low, high, count, verdict)


def paired_bootstrap(
    changes: Sequence[float] | np.ndarray, sizes: Sequence[int], confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Bound the change per unit, sum of changes over sum of sizes, by drawing whole documents with replacement."""
    draw = np.random.default_rng(seed)
    changes, weights = np.asarray(changes, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    counts = draw.multinomial(len(changes), np.full(len(changes), 1 / len(changes)), size=resamples)
    ratios = (counts @ changes) / np.maximum(counts @ weights, 1)
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _read(texts: Iterable[str]) -> Iterator[str]:
    read = 0
    for text in texts:
        yield text
        read += len(text)
        if read >= READ_BYTES:
            say(f"  general text is a sample of the first {read / 1e6:.0f} MB that were read")
            return


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
