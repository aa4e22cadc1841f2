"""How many bytes a token carries: this vocabulary beside characters, GPT-2's and any other at hand.

Nothing is downloaded: other vocabularies are files, or GPT-2's where tiktoken has it in its cache.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ludus.base.errors import DataError
from ludus.text.find import find
from ludus.text.ranks import KNOWN, read_ranks
from ludus.text.tokenizer import Tokenizer

_GPT2_ADDRESS = "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken"


def report(tokenizer: Tokenizer, text: str, others: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return a row each {name, tokens, bytes_per_token, vocabulary}: this tokenizer, the others, GPT-2, characters.

    `others` are paths of tokenizers in any format that `Tokenizer.load` reads, or names on the hub. Raises `DataError`
    for a path that is none of these, and for an empty text.
    """
    if not text:
        raise DataError("there is no text to compare vocabularies on")
    size = len(text.encode())

    def row(name: str, tokens: int, vocabulary: int) -> dict[str, Any]:
        return {"name": name, "tokens": tokens, "bytes_per_token": size / tokens, "vocabulary": vocabulary}

    rows = [row(tokenizer.name, len(tokenizer.encode_batch([text])[0]), tokenizer.vocabulary_size)]
    rows += (row(*_count(find(path), text)) for path in others)
    if not any(row["name"] == "GPT-2" for row in rows):
        rows += (row(*_count_ranks(path, text)) for path in _cached_gpt2())
    return [*rows, row("characters", len(text), len(set(text)))]


def _count(path: Path, text: str) -> tuple[str, int, int]:
    if path.suffix == ".tiktoken":
        return _count_ranks(path, text)
    other = Tokenizer.load(path)
    name = path.name if path.is_dir() else path.parent.name or path.name
    own = int((other.token_bytes() > 0).sum())  # without special tokens
    return name, len(other.encode(text)), own


def _count_ranks(path: Path, text: str) -> tuple[str, int, int]:
    import tiktoken

    ranks = read_ranks(path)
    known = KNOWN[len(ranks)]
    encoding = tiktoken.Encoding(known.name, pat_str=known.split, mergeable_ranks=ranks, special_tokens={})
    return known.name, len(encoding.encode_ordinary(text)), encoding.n_vocab


def _cached_gpt2() -> Iterator[Path]:
    """Find GPT-2's ranks where tiktoken caches them: named by the hash of the address they came from."""
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR") or default
    path = Path(folder) / hashlib.sha1(_GPT2_ADDRESS.encode(), usedforsecurity=False).hexdigest()
    if path.is_file():
        yield path
