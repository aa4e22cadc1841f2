"""Families and sizes, as data: which switches make a GPT-2, a Llama or our own, and the shapes that have names.

A family gives every switch that a person may also set alone. A size gives numbers, and hints at the vocabulary and the
context that it was published with. What `modern` holds is what was measured to reach a loss in the least time.
"""

from dataclasses import dataclass, field
from typing import Any

LLAMA: dict[str, Any] = {
    "norm": "rms",
    "norm_epsilon": 1e-5,
    "norm_bias": True,  # of a layer norm, should one be set
    "position": "rope",
    "activation": "swiglu",
    "qk_norm": "none",
    "parallel": False,
    "attention_bias": False,
    "output_bias": False,
    "mlp_bias": False,
    "head_bias": False,
    "tied": False,
    "embedding_norm": False,
    "embedding_skip": False,
    "embedding_convolution": 0,
    "attention_convolution": 0,
    "mlp_convolution": 0,
    "ngrams": 0,
    "initial": "zero",
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "gpt2": LLAMA
    | {
        "norm": "layer",
        "position": "learned",
        "activation": "gelu_tanh",
        "attention_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "tied": True,
        "initial": "gpt2",
    },
    "modern": LLAMA
    | {
        "norm": "plain",
        "qk_norm": "plain",
        "activation": "relu2",
        "embedding_norm": True,
        "ngrams": 4,
    },
}


@dataclass(frozen=True)
class Size:
    """A shape with a name; `switches` are what it has besides, and what is None derives as it would from the depth."""

    layers: int
    width: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    hidden: int | None = None
    vocabulary: int | None = None
    context: int | None = None
    switches: dict[str, Any] = field(default_factory=dict)


def _gpt2(layers: int, width: int, heads: int) -> Size:
    return Size(layers, width, heads, heads, 4 * width, vocabulary=50_257, context=1024)


def _llama3(layers: int, width: int, heads: int, hidden: int, *, tied: bool) -> Size:
    switches = {"rope_theta": 500_000.0, "tied": tied}
    return Size(layers, width, heads, 8, hidden, vocabulary=128_256, context=8192, switches=switches)


def _small(layers: int, width: int, heads: int, hidden: int) -> Size:
    return Size(layers, width, heads, heads // 3, hidden, vocabulary=49_152, context=2048, switches={"tied": True})


SIZES: dict[str, dict[str, Size]] = {
    "gpt2": {
        "124M": _gpt2(12, 768, 12),
        "355M": _gpt2(24, 1024, 16),
        "774M": _gpt2(36, 1280, 20),
        "1.5B": _gpt2(48, 1600, 25),
    },
    "llama": {
        "135M": _small(30, 576, 9, 1536),
        "360M": _small(32, 960, 15, 2560),
        "1B": _llama3(16, 2048, 32, 8192, tied=True),
        "3B": _llama3(28, 3072, 24, 8192, tied=True),
        "8B": _llama3(32, 4096, 32, 14_336, tied=False),
        "70B": _llama3(80, 8192, 64, 28_672, tied=False),
    },
    "modern": {f"d{layers}": Size(layers) for layers in (4, 6, 8, 10, 12, 16, 20, 24)},
}
SIZES["gpt2"]["350M"] = SIZES["gpt2"]["355M"]  # what many call it
