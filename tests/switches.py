"""The switches of an architecture that tests are shown on: each family, and all that reaches beyond one token."""

from collections.abc import Callable

import torch

from ludus.model.architecture import Experts, RopeScaling
from ludus.model.transformer import Transformer

BIASES = {"attention_bias": True, "output_bias": True, "mlp_bias": True}
SWITCHES = {
    "llama": {},
    "gpt2": {
        "norm": "layer",
        "position": "learned",
        "activation": "gelu_tanh",
        "kv_heads": 4,
        **BIASES,
    },
    "gptj": {
        "norm": "layer",
        "position": "rope_interleaved",
        "rotary_dims": 4,
        "activation": "gelu_tanh",
        "parallel": True,
        "mlp_bias": True,
        "head_bias": True,
    },
    "modern": {
        "norm": "plain",
        "qk_norm": "plain",
        "activation": "relu2",
        "embedding_convolution": 3,
        "mlp_convolution": 2,
        "attention_convolution": 1,
        "embedding_norm": True,
        "embedding_skip": True,
        "logit_softcap": 5.0,
    },
    "ngrams": {"ngrams": 4, "ngram_rows": 97, "norm": "plain", "activation": "relu2"},
    "windowed": {"windows": (3, None), "qk_norm": "rms", "rope_scaling": RopeScaling("yarn", 4.0, 8)},
    "parallel mixture": {
        "experts": Experts(4, 2, 1, 16),
        "parallel": True,
        "mlp_convolution": 2,
        "windows": (4, 2),
        "position": "none",
    },
    "mixture": {"experts": Experts(5, 2, 0, 12), "activation": "gelu"},
}
EVERY = [(switch, "plain") for switch in SWITCHES if SWITCHES[switch]] + [
    ("modern", "fused"),
    ("windowed", "fused"),
    ("windowed", "flex"),
]
KINDS = [" ".join(kind) for kind in EVERY]


def switched(tiny: Callable, kind: str) -> Transformer:
    """Return a tiny model of a kind in `KINDS`, its biases drawn about zero so that none drowns what it is added to."""
    switch, _, backend = kind.rpartition(" ")
    model = tiny(backend=backend, **SWITCHES[switch])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter -= 1
    return model
