"""GPT-2's vocabulary from its rank file (`*.tiktoken`), as a `tokenizer.json`.

A rank file lists tokens in the order in which they were learned, but not which two were merged into each; that is found
by merging every token's bytes with the tokens before it. Nor does it say how text is split, so only GPT-2's is known.
"""

import base64
import json
from pathlib import Path

from ludus.base.errors import DataError
from ludus.text.alphabet import byte_characters
from ludus.text.template import ENDOFTEXT

GPT2_RANKS = 50_256
GPT2_SPLIT = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read GPT-2's rank file: a token in base64 and its rank on each line. Raises `DataError` for any other file."""
    try:
        pairs = (line.split() for line in path.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except FileNotFoundError:
        raise DataError(f"no rank file at {path}; give the path of a *.tiktoken or tokenizer.json file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a rank file (base64 token and rank on each line): {error}") from None
    if len(ranks) != GPT2_RANKS:
        raise DataError(
            f"{path} has {len(ranks)} ranks; of rank files only GPT-2's ({GPT2_RANKS}) is known, "
            "because such a file does not say how text is split; give a tokenizer.json instead"
        )
    return ranks


def definition(ranks: dict[bytes, int]) -> str:
    """Return the `tokenizer.json` of GPT-2's ranks, with `<|endoftext|>` after them."""
    spelling = {byte: character for character, byte in byte_characters().items()}

    def spelt(token: bytes) -> str:
        return "".join(spelling[byte] for byte in token)

    learned = sorted((rank, token) for token, rank in ranks.items() if len(token) > 1)
    merges = [[spelt(part) for part in _parts(token, rank, ranks)] for rank, token in learned]
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False) | {"special": True}
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": len(ranks), "content": ENDOFTEXT} | flags],
        "normalizer": None,
        "pre_tokenizer": split,
        "post_processor": None,
        "decoder": split,
        "model": {
            "type": "BPE",
            "vocab": {spelt(token): rank for token, rank in sorted(ranks.items(), key=lambda pair: pair[1])},
            "merges": merges,
        },
    }
    return json.dumps(content, ensure_ascii=False)


def _parts(token: bytes, rank: int, ranks: dict[bytes, int]) -> list[bytes]:
    """Merge a token's bytes, lowest rank first, as far as the tokens before it allow: to the two it was made of."""
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        found = [(ranks.get(parts[place] + parts[place + 1], rank), place) for place in range(len(parts) - 1)]
        best, place = min(found)
        if best >= rank:
            raise DataError(f"the rank file is damaged: token {token!r} cannot be made of those before it")
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts
