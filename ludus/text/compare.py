"""How many bytes a token carries: this vocabulary beside characters, GPT-2's and any other at hand.

Nothing is downloaded: other vocabularies are files, or GPT-2's where tiktoken has it in its cache.
"""

import base64
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tiktoken

from ludus.base.errors import DataError
from ludus.text.tokenizer import Tokenizer

_GPT2_RANKS = 50_256
_GPT2_SPLIT = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT2_ADDRESS = "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken"


def report(tokenizer: Tokenizer, text: str, others: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return a row each {name, tokens, bytes_per_token, vocabulary}: this tokenizer, the others, GPT-2, characters.

    `others` are paths of `tokenizer.json` files, folders with one, or GPT-2's rank file. Raises `DataError` for a path
    that is none of these, and for an empty text.
    """
    if not text:
        raise DataError("there is no text to compare vocabularies on")
    size = len(text.encode())

    def row(name: str, tokens: int, vocabulary: int) -> dict[str, Any]:
        return {"name": name, "tokens": tokens, "bytes_per_token": size / tokens, "vocabulary": vocabulary}

    rows = [row(tokenizer.name, len(tokenizer.encode(text)), tokenizer.vocabulary_size)]
    rows += (row(*_count(Path(path).expanduser(), text)) for path in others)
    if not any(row["name"] == "GPT-2" for row in rows):
        rows += (row(*_count_ranks(path, text)) for path in _cached_gpt2())
    return [*rows, row("characters", len(text), len(set(text)))]


def _count(path: Path, text: str) -> tuple[str, int, int]:
    if path.suffix == ".tiktoken":
        return _count_ranks(path, text)
    other = Tokenizer.load(path)
    name = path.name if path.is_dir() else path.parent.name or path.name
    own = int((other.token_bytes() > 0).sum())  # without the special tokens that loading adds
    return name, len(other.encode(text)), own


def _count_ranks(path: Path, text: str) -> tuple[str, int, int]:
    ranks = _read_ranks(path)
    if len(ranks) != _GPT2_RANKS:
        raise DataError(
            f"{path} has {len(ranks)} ranks; of rank files only GPT-2's ({_GPT2_RANKS}) is known, "
            "because such a file does not say how text is split; give a tokenizer.json instead"
        )
    encoding = tiktoken.Encoding("gpt2", pat_str=_GPT2_SPLIT, mergeable_ranks=ranks, special_tokens={})
    return "GPT-2", len(encoding.encode_ordinary(text)), encoding.n_vocab


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Read a rank file: a token in base64 and its rank on each line."""
    try:
        pairs = (line.split() for line in path.read_bytes().splitlines() if line)
        return {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except FileNotFoundError:
        raise DataError(f"no rank file at {path}; give the path of a *.tiktoken or tokenizer.json file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a rank file (base64 token and rank on each line): {error}") from None


def _cached_gpt2() -> Iterator[Path]:
    """Find GPT-2's ranks where tiktoken caches them: named by the hash of the address they came from."""
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR") or default
    path = Path(folder) / hashlib.sha1(_GPT2_ADDRESS.encode(), usedforsecurity=False).hexdigest()
    if path.is_file():
        yield path
