"""What a person may say about a model, and the architecture it resolves to. Free of torch, so that `--help` is instant.

One dial, `depth`, derives everything else; each derived value can be set, and says where it came from.
"""

from typing import Any

from ludus.base.config import Field, Settings
from ludus.model.architecture import Architecture as Architecture
from ludus.model.architecture import Experts as Experts
from ludus.model.architecture import RopeScaling as RopeScaling


class ModelSettings(Settings):
    """A Llama-type decoder: RoPE, RMSNorm, SwiGLU, grouped-query attention."""

    depth: int = Field(4, ge=1, le=128, description="Layers; width, heads and feed-forward size derive from it.")
    width: int | None = Field(None, ge=8, description="Channels of the residual stream.")
    heads: int | None = Field(None, ge=1, description="Attention heads; must divide the width.")
    kv_heads: int | None = Field(
        None, ge=1, description="Key and value heads (grouped-query attention); divides heads."
    )
    hidden: int | None = Field(None, ge=8, description="Inner channels of the SwiGLU feed-forward.")
    rope_theta: float = Field(10_000.0, gt=0, description="Base of the rotary position angles.")
    norm_epsilon: float = Field(1e-5, gt=0, description="Added inside RMSNorm's root.")
    tied: bool = Field(False, description="Share the embedding with the output head.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on attention and feed-forward outputs.")

    def derive(self, root: Settings) -> dict[str, tuple[Any, str]]:
        """Fill width, heads and feed-forward size from the depth."""
        width = self.width or min(64 * self.depth, 128 * max(1, self.depth - 3))
        head_dim = 64 if width >= 384 else 32
        heads = self.heads or max(1, width // head_dim)
        return {
            "width": (width, f"64 channels a layer, thinner below 6 layers, at model.depth={self.depth}"),
            "heads": (heads, f"{head_dim} channels a head at model.width={width}"),
            "kv_heads": (heads // 2 if heads % 2 == 0 else heads, f"half of model.heads={heads}, where that is whole"),
            "hidden": (-(-width * 8 // 3 // 32) * 32, f"8/3 of model.width={width}, in steps of 32 (SwiGLU)"),
        }


def architecture(settings: ModelSettings, *, vocabulary: int, context: int) -> Architecture:
    """Join the settings with what data decides: the vocabulary and the context length in tokens.

    Raises:
        ConfigError: heads do not divide the width, kv_heads do not divide heads, or a head has an odd size.
    """
    from ludus.base.errors import ConfigError

    width, heads, kv_heads = settings.width or 0, settings.heads or 1, settings.kv_heads or 1
    if width % heads or (width // heads) % 2:
        raise ConfigError(
            f"model.width={width} over model.heads={heads} is not an even whole number of channels a head; "
            f"set model.width to a multiple of {2 * heads}"
        )
    if heads % kv_heads:
        raise ConfigError(f"model.kv_heads={kv_heads} does not divide model.heads={heads}; set it to a divisor")
    return Architecture(
        vocabulary=vocabulary,
        layers=settings.depth,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width // heads,
        hidden=settings.hidden or 4 * width,
        context=context,
        rope_theta=settings.rope_theta,
        norm_epsilon=settings.norm_epsilon,
        tied=settings.tied,
        dropout=settings.dropout,
    )
