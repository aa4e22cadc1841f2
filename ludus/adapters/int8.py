"""Weights in eight bits: one scale for each output, symmetric about zero.

The weights of LLM.int8() (arXiv 2208.07339), whose products are not taken in eight bits here: weights
are turned back first, so activations keep their precision and outliers among them need no path of their own.
"""

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 127


class Int8(NamedTuple):
    """A matrix in eight bits."""

    codes: Tensor  # int8, in the shape of the matrix
    scales: Tensor  # float32, one for each row: its largest size


def encode(weight: Tensor) -> Int8:
    """Quantise each row by its largest size."""
    found = weight.detach()
    largest = found.abs().amax(1).float()
    codes = torch.round(found.float() * (LARGEST / largest.clamp(min=1e-38))[:, None])
    return Int8(codes.to(torch.int8), largest)


def decode(code: Int8, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the weights that the bytes stand for: products in float32, then rounded to `dtype`."""
    return code.codes.float().mul_((code.scales / LARGEST)[:, None]).to(dtype)
