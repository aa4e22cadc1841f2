"""Fresh weights, two ways: zero where something is added or scored, or as GPT-2 drew them.

Which draw a parameter gets goes by its name. The generator is an argument, and everything random comes from it.
"""

import math
from typing import Literal

import torch
from torch import nn

from ludus.model.architecture import Architecture

OUTPUTS = ("o_proj.weight", "down_proj.weight", "down_proj")  # what writes to the residual stream
GPT2_STD = 0.02


def initialise(model: nn.Module, generator: torch.Generator, initial: Literal["zero", "gpt2"] = "zero") -> nn.Module:
    """Draw the weights of a transformer, in place.

    `zero`: normal embeddings and matrices, zeros where a block writes to the residual stream and in the head, so that
    the first loss is exactly ln V and each block starts as the identity. A tied head cannot be zero: it is drawn small.
    `gpt2`: everything normal at 0.02, what writes to the residual stream at 0.02 / sqrt(2 layers).
    """
    shape: Architecture = model.shape  # type: ignore[assignment]
    for name, parameter in model.named_parameters():
        if name.endswith("skip"):
            with torch.no_grad():
                parameter.copy_(torch.tensor([1.0, 0.0]))  # a layer's input is the stream alone
        elif name.endswith(("bias", "convolution.weight")):
            nn.init.zeros_(parameter)
        elif parameter.dim() == 1:  # of a norm
            nn.init.ones_(parameter)
        else:
            std = _gpt2_std(name, shape) if initial == "gpt2" else _std(name, shape)
            nn.init.normal_(parameter, std=std, generator=generator) if std else nn.init.zeros_(parameter)
    return model


def _std(name: str, shape: Architecture) -> float:
    if name.endswith((*OUTPUTS, "lm_head.weight")):
        return 0.0
    if name.startswith("ngrams"):
        return 0.1 * _std("embed_tokens.weight", shape)
    if name.startswith("embed_"):
        return 0.02 if shape.tied else 1.0 if shape.embedding_norm else 0.5
    return 1 / math.sqrt(shape.width)


def _gpt2_std(name: str, shape: Architecture) -> float:
    return GPT2_STD / math.sqrt(2 * shape.layers) if name.endswith(OUTPUTS) else GPT2_STD
