"""The precision policy: which dtype matrix products run in, and why. Weights and moments stay float32."""

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def choose(precision: Precision) -> tuple[torch.dtype, str]:
    """Return the dtype and the reason; `auto` takes bfloat16 where the processor multiplies it natively."""
    if precision != "auto":
        return getattr(torch, precision), "as set"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16, "this processor multiplies bfloat16 natively"
    return torch.float32, "this processor has no native bfloat16"
