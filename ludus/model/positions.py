"""Rotary positions: how fast each pair of channels turns, how that is stretched, and the two layouts of the pairs.

Angles are worked out once for a forward pass and shared by all layers. Everything here is float32, whatever the
precision of the matrix products: an angle of some thousand turns has no digits to lose.
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ludus.model.architecture import Architecture, RopeScaling


def rotary_angles(
    positions: Int[Tensor, "batch time"], frequencies: Float[Tensor, " half"]
) -> Float[Tensor, "batch 1 time half"]:
    """Return position x frequency for each pair of channels (RoPE, arXiv 2104.09864 eq. 15)."""
    return (positions[..., None].float() * frequencies)[:, None]


def rotary_frequencies(shape: Architecture, device: torch.device | str) -> tuple[Float[Tensor, " half"], float]:
    """Return the angle that a pair of channels turns by from one position to the next, and what scales the rotation."""
    steps = torch.arange(0, shape.rotary_dims, 2, device=device, dtype=torch.float32) / shape.rotary_dims
    frequencies = shape.rope_theta ** (-steps)
    if shape.rope_scaling is None:
        return frequencies, 1.0
    return _stretched(frequencies, shape.rope_scaling, shape.rope_theta)


def _stretched(frequencies: Tensor, scaling: RopeScaling, theta: float) -> tuple[Tensor, float]:
    if scaling.kind == "linear":
        return linear(frequencies, scaling), scaling.attention_factor or 1.0
    if scaling.kind == "llama3":
        return llama3(frequencies, scaling), scaling.attention_factor or 1.0
    return yarn(frequencies, scaling, theta), yarn_attention(scaling)


def linear(frequencies: Float[Tensor, " half"], scaling: RopeScaling) -> Float[Tensor, " half"]:
    """Slow every pair down by the factor: position interpolation (arXiv 2306.15595)."""
    return frequencies / scaling.factor


def llama3(frequencies: Float[Tensor, " half"], scaling: RopeScaling) -> Float[Tensor, " half"]:
    """Slow down the pairs that turn rarely within the original context, leave the fast, blend between (Llama 3.1)."""
    turns = frequencies * scaling.original_context / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * kept + frequencies / scaling.factor * (1 - kept)


def yarn(frequencies: Float[Tensor, " half"], scaling: RopeScaling, theta: float) -> Float[Tensor, " half"]:
    """Blend by turns within the original context, along the index of the pair (YaRN, arXiv 2309.00071 §3.2)."""
    dims = 2 * len(frequencies)

    def pair_that_turns(times: float) -> float:
        return dims * math.log(scaling.original_context / (times * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
    last = min(math.ceil(pair_that_turns(scaling.beta_slow)), dims - 1)
    index = torch.arange(len(frequencies), device=frequencies.device, dtype=torch.float32)
    slowed = ((index - first) / max(last - first, 1e-3)).clamp(0, 1)
    return frequencies / scaling.factor * slowed + frequencies * (1 - slowed)


def yarn_attention(scaling: RopeScaling) -> float:
    """Return what both queries and keys are scaled by: the root of the temperature (arXiv 2309.00071 §3.4)."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0


def rotate(
    heads: Float[Tensor, "batch heads time head_dim"],
    cos: Float[Tensor, "#batch 1 time half"],
    sin: Float[Tensor, "#batch 1 time half"],
) -> Float[Tensor, "batch heads time head_dim"]:
    """Turn channel i with channel i + half by the angles: the half-split layout of Llama checkpoints."""
    return _Turned.apply(heads, cos, sin, False)  # type: ignore[return-value]


def rotate_interleaved(
    heads: Float[Tensor, "batch heads time head_dim"],
    cos: Float[Tensor, "#batch 1 time half"],
    sin: Float[Tensor, "#batch 1 time half"],
) -> Float[Tensor, "batch heads time head_dim"]:
    """Turn each even channel with the odd one after it by the angles: the layout of GPT-J checkpoints."""
    return _Turned.apply(heads, cos, sin, True)  # type: ignore[return-value]


class _Turned(torch.autograd.Function):
    """The rotation of pairs of channels; the way back is the rotation by the opposite angles, and needs no input."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved, ctx.dtype = interleaved, heads.dtype
        return _turned(heads, cos, sin, interleaved)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _turned(gradient, cos, -sin, ctx.interleaved).to(ctx.dtype), None, None, None


def _turned(heads: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    heads = heads.to(torch.promote_types(heads.dtype, cos.dtype))
    if torch.compiler.is_compiling():  # which loses what is written into views
        first, second = _pairs(heads, interleaved)
        pairs = first * cos - second * sin, second * cos + first * sin
        return torch.stack(pairs, dim=-1).flatten(-2) if interleaved else torch.cat(pairs, dim=-1)
    turned = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    (first, second), (new_first, new_second) = _pairs(heads, interleaved), _pairs(turned, interleaved)
    torch.mul(first, cos, out=new_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=new_second).addcmul_(first, sin)
    return turned


def _pairs(heads: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    if interleaved:
        return heads[..., ::2], heads[..., 1::2]
    half = heads.shape[-1] // 2
    return heads[..., :half], heads[..., half:]


class Rotation:
    """The turn of one forward pass, as attention applies it to queries and keys."""

    def __init__(self, shape: Architecture, positions: Int[Tensor, "batch time"]) -> None:
        frequencies, scale = rotary_frequencies(shape, positions.device)
        angles = rotary_angles(positions, frequencies)
        self.cos, self.sin = angles.cos(), angles.sin()
        if scale != 1.0:
            self.cos, self.sin = self.cos * scale, self.sin * scale
        self.dims = shape.rotary_dims
        self.turn = rotate_interleaved if shape.position == "rope_interleaved" else rotate

    def __call__(self, heads: Float[Tensor, "batch heads time head_dim"]) -> Float[Tensor, "batch heads time head_dim"]:
        """Turn the first `dims` channels of each head; the dtype may widen to float32."""
        if self.dims == heads.shape[-1]:
            return self.turn(heads, self.cos, self.sin)
        turned = self.turn(heads[..., : self.dims], self.cos, self.sin)
        return torch.cat((turned, heads[..., self.dims :].to(turned.dtype)), dim=-1)
