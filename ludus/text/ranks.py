"""A vocabulary from its rank file (`*.tiktoken`, or Llama 3's `tokenizer.model`), as a `tokenizer.json`.

A rank file lists tokens in the order in which they were learned, but not which two were merged into each; that is found
by merging every token's bytes with the tokens before it. Nor does it say how text is split or which tokens are special:
the public vocabularies are known by how many ranks they have.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ludus.base.errors import DataError
from ludus.text.alphabet import byte_characters
from ludus.text.template import ENDOFTEXT

GPT2_SPLIT = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPLIT = _CL100K_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER, _ENDINGS = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K_SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_ENDINGS}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FLAGS = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False) | {"special": True}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@dataclass(frozen=True)
class Known:
    """A public vocabulary: its name, how it splits text, its special tokens by id, and the one that opens a text."""

    name: str
    split: str
    specials: Mapping[str, int]
    opens: str | None = None


def _llama3() -> dict[str, int]:
    named = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 4: "<|finetune_right_pad_id|>", 6: "<|start_header_id|>"}
    named |= {7: "<|end_header_id|>", 8: "<|eom_id|>", 9: "<|eot_id|>", 10: "<|python_tag|>"}
    reserved = (f"<|reserved_special_token_{number}|>" for number in range(256))
    return {named.get(place) or next(reserved): 128_000 + place for place in range(256)}


_FILL = {"<|fim_prefix|>": 100_258, "<|fim_middle|>": 100_259, "<|fim_suffix|>": 100_260, "<|endofprompt|>": 100_276}
KNOWN = {
    50_256: Known("GPT-2", GPT2_SPLIT, {ENDOFTEXT: 50_256}),
    50_280: Known("p50k_base", GPT2_SPLIT, {ENDOFTEXT: 50_256}),
    100_256: Known("cl100k_base", _CL100K_SPLIT, {ENDOFTEXT: 100_257} | _FILL),
    128_000: Known("Llama 3", _CL100K_SPLIT, _llama3(), opens="<|begin_of_text|>"),
    199_998: Known("o200k_base", _O200K_SPLIT, {ENDOFTEXT: 199_999, "<|endofprompt|>": 200_018}),
}


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read a rank file: a token in base64 and its rank on each line. Raises `DataError` for one that is not known."""
    try:
        pairs = (line.split() for line in path.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except FileNotFoundError:
        raise DataError(f"no rank file at {path}; give the path of a *.tiktoken or tokenizer.json file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a rank file (base64 token and rank on each line): {error}") from None
    if len(ranks) not in KNOWN:
        others = ", ".join(f"{known.name}'s ({count})" for count, known in list(KNOWN.items())[1:])
        raise DataError(
            f"{path} has {len(ranks)} ranks; of rank files only GPT-2's (50256), {others} are known, "
            "because such a file does not say how text is split; give a tokenizer.json instead"
        )
    return ranks


def definition(ranks: dict[bytes, int], known: Known = KNOWN[50_256]) -> str:
    """Return the `tokenizer.json` of a vocabulary's ranks, with its special tokens.

    Raises `DataError` where a token of GPT-2's cannot be made of those before it. The later vocabularies have such
    tokens, which stand for whole words alone.
    """
    spelling = {byte: character for character, byte in byte_characters().items()}
    whole_words = known.split != GPT2_SPLIT

    def spelt(token: bytes) -> str:
        return "".join([spelling[byte] for byte in token])

    merges: list[list[str]] = []
    for rank, token in sorted((rank, token) for token, rank in ranks.items() if len(token) > 1):
        made_of = _parts(token, rank, ranks)
        if len(made_of) == 2:
            merges.append([spelt(part) for part in made_of])
        elif not whole_words:
            raise DataError(f"the rank file is damaged: token {token!r} cannot be made of those before it")
    words = {spelt(token): rank for token, rank in sorted(ranks.items(), key=lambda pair: pair[1])}
    return byte_level(words, merges, known.specials, split=known.split, opens=known.opens, whole_words=whole_words)


def byte_level(
    words: Mapping[str, int],
    merges: list[list[str]],
    specials: Mapping[str, int],
    *,
    split: str = GPT2_SPLIT,
    opens: str | None = None,
    whole_words: bool = False,
    normalizer: str | None = None,
) -> str:
    """Return the `tokenizer.json` of a byte-level BPE vocabulary.

    `whole_words` looks words up before it merges; `opens` is the token that other software puts before a text. Special
    tokens stand among the words too: other readers number those that do not by their own rule.
    """
    level = BYTE_LEVEL | {"use_regex": True}
    steps = [{"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}, BYTE_LEVEL]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": token} | FLAGS for token, index in specials.items()],
        "normalizer": {"type": normalizer} if normalizer else None,
        "pre_tokenizer": level if split == GPT2_SPLIT else {"type": "Sequence", "pretokenizers": steps},
        "post_processor": opening(opens, specials[opens]) if opens else None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {**words, **specials}, "merges": merges, "ignore_merges": whole_words},
    }
    return json.dumps(content, ensure_ascii=False)


def opening(token: str, index: int) -> dict[str, Any]:
    """Return the post-processor by which other software begins every text with a token."""
    special, first, second = ({"SpecialToken": {"id": token, "type_id": 0}}, *map(_sequence, "AB"))
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, special, second],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
    }


def _sequence(name: str) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": 0}}


def _parts(token: bytes, rank: int, ranks: dict[bytes, int]) -> list[bytes]:
    """Merge a token's bytes, lowest rank first, as far as the tokens before it allow: to two where it can be made."""
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        found = [(ranks.get(parts[place] + parts[place + 1], rank), place) for place in range(len(parts) - 1)]
        best, place = min(found)
        if best >= rank:
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts
