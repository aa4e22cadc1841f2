"""Normalisation of the residual stream and of heads: with weights, without, or centred as well."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ludus.model.architecture import Architecture


class RMSNorm(nn.Module):
    """Divide by the root mean square, then scale each channel (arXiv 1910.07467 eq. 4)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class PlainNorm(nn.Module):
    """Divide by the root mean square; nothing is learned."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(x, x.shape[-1:], None, self.epsilon)


def stream_norm(shape: Architecture) -> nn.Module:
    """Make the norm of an architecture's residual stream (LayerNorm is that of arXiv 1607.06450)."""
    if shape.norm == "layer":
        return nn.LayerNorm(shape.width, shape.norm_epsilon, bias=shape.norm_bias)
    return PlainNorm(shape.norm_epsilon) if shape.norm == "plain" else RMSNorm(shape.width, shape.norm_epsilon)


def head_norm(shape: Architecture) -> nn.Module | None:
    """Make the norm of an architecture's queries or keys, over the channels of one head (arXiv 2010.04245)."""
    if shape.qk_norm == "none":
        return None
    return PlainNorm(shape.norm_epsilon) if shape.qk_norm == "plain" else RMSNorm(shape.head_dim, shape.norm_epsilon)
