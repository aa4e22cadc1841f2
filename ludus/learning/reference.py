"""What a frozen model says of fixed data, computed once: references are data, never part of an objective."""

from collections.abc import Sequence

import numpy as np
import torch

from ludus.base.console import track
from ludus.data.pairs import Pair, stack
from ludus.learning.objectives.logps import frozen_logps
from ludus.model.transformer import Transformer


def reference_logps(model: Transformer, pairs: Sequence[Pair], *, pad_token: int, size: int = 64) -> np.ndarray:
    """Return log-probabilities of whole answers, (pairs, 2), chosen first; pairs of similar length run together."""
    found = np.zeros((len(pairs), 2), dtype=np.float32)
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index].rejected[0]))
    starts = range(0, len(pairs), size)
    for start in track(starts, "  reference", total=len(starts)):
        chosen = order[start : start + size]
        batch = stack([pairs[index] for index in chosen], pad_token).to(model.embed_tokens.weight.device)
        logps = (batch.weights * frozen_logps(model, batch)).sum(dim=1)
        found[chosen] = torch.stack(logps.chunk(2), dim=1).cpu().numpy()
    return found
