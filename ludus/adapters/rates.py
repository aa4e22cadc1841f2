"""Which learning rate suits which kind of adapter, by the size of the model. Free of torch.

What lives here: one table and one rule. What does not: schedules, or a search. The one idea: adapters want a rate that
is a multiple of LoRA's, and LoRA's own falls with the size of the model on a line in logarithms.
"""

import json
from math import log10
from pathlib import Path
from typing import NamedTuple

from ludus.adapters.settings import AnyAdapter

SMALL, LARGE = 1e6, 7e9  # parameters
UNKNOWN = 1e9


class Kind(NamedTuple):
    """Peak rates of a kind for a small and a large model, and why."""

    small: float
    large: float
    why: str


# For the small model rates were tried at 0.26 M parameters, a factor of two or three apart, and the best is kept; for
# the large one they are those of the papers, where they say one, else in the same proportion to LoRA's.
KINDS = {
    "full": Kind(1e-3, 2e-5, "all weights move at once, so a fifth to a tenth of LoRA's"),
    "lora": Kind(5e-3, 2e-4, "LoRA's"),
    "lora+": Kind(6e-4, 2.5e-5, "an eighth of LoRA's, since B learns 16 times faster"),
    "dora": Kind(5e-3, 2e-4, "as LoRA's"),
    "rslora": Kind(2.5e-3, 1e-4, "half of LoRA's, since its change is multiplied by more"),
    "pissa": Kind(4e-3, 1.6e-4, "a little below LoRA's, since it starts at the largest singular values"),
    "vera": Kind(6e-2, 4e-3, "more than ten times LoRA's, since only two vectors a layer learn"),
    "loha": Kind(1.5e-2, 6e-4, "three times LoRA's, since its change is a product of two small ones"),
    "ia3": Kind(5e-2, 3e-3, "ten times LoRA's or more, since only factors learn"),
    "prefix": Kind(3e-1, 1e-2, "keys and values learn by themselves, without a network"),
    "prompt": Kind(1e-1, 3e-2, "only the embeddings of a few tokens learn"),
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


def kind_of(settings: AnyAdapter) -> str:
    """Name what a rate is looked up by: the kind, or the way it was changed that asks for another rate."""
    if getattr(settings, "initialise", "zero") == "pissa":
        return "pissa"
    return "rslora" if getattr(settings, "rank_stabilised", False) and settings.kind == "lora" else settings.kind


def parameters_at(name: str) -> float:
    """Estimate the parameters of a model by the size of its files; those of one that is not here yet as a billion."""
    path = Path(name).expanduser()
    files = [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.bin")]
    files = files or [*path.glob("model/*.safetensors"), *path.glob("*/model/*.safetensors")][:1]
    if not files:
        return UNKNOWN
    size = sum(file.stat().st_size for file in files)
    try:
        config = json.loads((files[0].parent / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        config = {}
    narrow = str(config.get("dtype") or config.get("torch_dtype")) in ("bfloat16", "float16")
    return size / (2 if narrow else 4)


def _amount(parameters: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= size:
            return f"{parameters / size:.3g} {unit}"
    return f"{parameters:.0f}"
