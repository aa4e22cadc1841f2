"""Learned vectors for the last few tokens together: what the first layers of a model would else have to work out.

A pair, a triple, ... of tokens is hashed to a row of a table of its own, and the rows are added to the embedding. The
tables cost memory and look-ups, no multiplications. Like a convolution they never reach into another document, and
while decoding the last tokens are kept in the cache.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ludus.model.architecture import Architecture
from ludus.model.convolution import sources
from ludus.model.sight import Sight

FACTORS = (0x2545F491, 0x2C1B3C6D)  # odd, of 30 bits, so that products stay within 63
MASK = (1 << 31) - 1
SITE = "ngrams"


class Ngrams(nn.Module):
    """Tables for 2, 3, ... `shape.ngrams` tokens, each of `shape.ngram_rows` rows."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        self.rows = shape.ngram_rows
        self.tables = nn.ModuleList(
            nn.Embedding.from_pretrained(torch.empty(self.rows, shape.width), freeze=False)
            for _ in range(2, shape.ngrams + 1)
        )

    def forward(self, tokens: Int[Tensor, "batch time"], sight: Sight) -> Float[Tensor, "batch time channels"]:
        """Return the sum of the rows of all lengths."""
        found: Tensor | None = None
        mixed = tokens
        for table, before in zip(self.tables, earlier(tokens, len(self.tables), sight), strict=True):
            mixed = _mix(mixed * FACTORS[0] + before + 1)
            row = table(mixed % self.rows)
            found = row if found is None else found + row
        assert found is not None
        return found


def earlier(tokens: Int[Tensor, "batch time"], backs: int, sight: Sight) -> list[Int[Tensor, "batch time"]]:
    """Return the tokens 1, 2, ... `backs` before each in its document; -1 where there is none."""
    time = tokens.shape[1]
    if sight.shared and sight.documents is not None:
        places = sources(sight.standing, sight.documents, backs)
        return [torch.where(standing, tokens.gather(1, place), -1) for place, standing in places]
    if sight.cache is not None:
        kept = sight.cache.recall(SITE, tokens[..., None], backs)[..., 0]
    else:
        kept = tokens.new_full((len(tokens), backs), -1)
    line = torch.cat((kept, tokens), dim=1)  # (batch, backs + time)
    shifted = [line[:, backs - back : backs - back + time] for back in range(1, backs + 1)]
    if sight.cache is None and sight.documents is None:
        return shifted
    standing = sight.standing[:, -time:]
    return [torch.where(standing >= back, before, -1) for back, before in enumerate(shifted, 1)]


def _mix(number: Tensor) -> Tensor:
    """Spread what differs over all bits; the same on every device."""
    number = number & MASK
    number = ((number ^ (number >> 15)) * FACTORS[1]) & MASK
    return number ^ (number >> 13)
