"""A model and its tokenizer belong together: token ids mean words of one vocabulary, and noise in any other.

A model's `config.json` keeps the hash of the tokenizer it was trained with. A tokenizer that grew from that one, by
special tokens alone, still is it: every id means what it meant.
"""

import math

from ludus.base.errors import TokenizerMismatch
from ludus.text.tokenizer import Tokenizer


def require_same(tokenizer: Tokenizer, wanted_hash: str | None, *, model: str) -> None:
    """Raise `TokenizerMismatch` unless the tokenizer is the model's, or grew from it; None wants none in particular.

    `model` names the model in the message, mostly by its folder.
    """
    if wanted_hash is None or wanted_hash in (tokenizer.hash, *tokenizer.ancestors):
        return
    size = tokenizer.vocabulary_size
    raise TokenizerMismatch(
        f"{model} was trained with tokenizer {wanted_hash[:8]}, not with {tokenizer.name} ({tokenizer.hash[:8]}): the "
        f"same token ids would mean other words, so the model would read noise and its loss would start near "
        f"ln {size:,} = {math.log(size):.1f} instead of near its own; use the tokenizer that lies in {model}, and make "
        "data anew that was written as tokens with another"
    )
