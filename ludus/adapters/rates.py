"""Which learning rate suits which kind of adapter, by the size of the model. Free of torch.

What lives here: one table and one rule. What does not: schedules, or a search. The one idea: adapters want a rate that
is a multiple of LoRA's, and LoRA's own falls with the size of the model on a line in logarithms.
"""

from math import log10
from typing import NamedTuple

SMALL, LARGE = 1e6, 7e9  # parameters


class Kind(NamedTuple):
    """Peak rates of a kind for a small and a large model, and why."""

    small: float
    large: float
    why: str


# At 0.3 M parameters rates were measured; at 7 B they are those of the papers, where they say one.
KINDS = {
    "full": Kind(1e-3, 2e-5, "all weights move at once, a tenth of LoRA's"),
    "lora": Kind(5e-3, 2e-4, "LoRA's"),
    "lora+": Kind(6e-4, 2.5e-5, "an eighth of LoRA's, since B learns 16 times faster"),
    "dora": Kind(5e-3, 2e-4, "as LoRA's"),
    "rslora": Kind(1.8e-3, 7e-5, "LoRA's over the root of rank 8, by which its change is larger"),
    "pissa": Kind(1e-3, 4e-5, "a fifth of LoRA's, since it starts at the largest singular values"),
    "vera": Kind(3e-2, 4e-3, "ten times LoRA's, since only two vectors a layer learn"),
    "loha": Kind(5e-3, 2e-4, "as LoRA's"),
    "ia3": Kind(3e-2, 3e-3, "ten times LoRA's, since only factors learn"),
    "prefix": Kind(3e-2, 1e-2, "keys and values learn without a network"),
    "prompt": Kind(3e-2, 3e-2, "only embeddings of a few tokens learn"),
}
SAME = {"none": "full", "qlora": "lora"}


def default_rate(kind: str, parameters: float) -> tuple[float, str]:
    """Return a peak rate for AdamW, and the reason for it.

    It lies on a line in logarithms between a model of a million parameters and one of seven billion; for LoRA it
    passes close to QLoRA's 2e-4 up to 13 and 1e-4 from 33 billion (arXiv 2305.14314). Raises KeyError for another kind.
    """
    small, large, why = KINDS[SAME.get(kind, kind)]
    share = log10(max(parameters, SMALL) / SMALL) / log10(LARGE / SMALL)
    return float(f"{small * (large / small) ** share:.2g}"), f"for {_amount(parameters)} parameters: {why}"


def _amount(parameters: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= size:
            return f"{parameters / size:.3g} {unit}"
    return f"{parameters:.0f}"
